-- Adds to each row its aircraft and the weather known two hours before departure: the latest observation made by
-- then (ASOF), never a later one, however complete the reference table has become since; none where it is two days old.
-- Stations observe on the hour, so the weather is looked up once an airport and hour, and not for each of its flights;
-- and among the days around the rows, not among those of years.
WITH asked AS (
    SELECT DISTINCT origin, date_trunc('hour', scheduled_departure - INTERVAL 2 HOURS) AS by_then FROM rows
),
recent AS (
    FROM weather
    WHERE observed_at BETWEEN (SELECT min(by_then) - INTERVAL 2 DAYS FROM asked) AND (SELECT max(by_then) FROM asked)
),
known AS (
    SELECT asked.origin, asked.by_then, recent.* EXCLUDE (origin)
    FROM asked
    ASOF JOIN recent
        ON asked.origin = recent.origin
        AND recent.observed_at <= asked.by_then
)
SELECT
    rows.*,
    planes.year AS plane_year,
    planes.seats,
    known.temp,
    known.dewp,
    known.humid,
    known.wind_speed,
    known.pressure,
    known.visib,
    known.precip
FROM rows
LEFT JOIN planes USING (tailnum)
LEFT JOIN known
    ON rows.origin = known.origin
    AND date_trunc('hour', rows.scheduled_departure - INTERVAL 2 HOURS) = known.by_then
    AND known.observed_at > known.by_then - INTERVAL 2 DAYS
