-- One row for each flight of the last four weeks, valid from the start of the day. Labels arrive a day late, so that
-- those of the last two days are not known yet: avg and count leave them out.
SELECT
    carrier,
    flight,
    starts_at AS valid_from,
    avg(late::INTEGER) AS late_share_28d,
    count(late) AS flown_28d
FROM history, period
WHERE scheduled_departure < starts_at AND scheduled_departure >= starts_at - INTERVAL 28 DAYS
GROUP BY ALL
