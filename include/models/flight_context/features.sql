-- Adds to each row its aircraft and the weather known two hours before departure: the latest observation at that time
-- (ASOF JOIN), never a later one, and none that is more than two days older.
-- Stations observe on the hour, so the weather is joined once per airport and hour instead of once per flight, and only
-- among the observations of the days around the rows.
WITH lookups AS (
    SELECT DISTINCT origin, date_trunc('hour', scheduled_departure - INTERVAL 2 HOURS) AS known_at FROM rows
),
recent AS (
    FROM weather
    WHERE observed_at BETWEEN (SELECT min(known_at) - INTERVAL 2 DAYS FROM lookups) AND (SELECT max(known_at) FROM lookups)
),
known AS (
    SELECT lookups.origin, lookups.known_at, recent.* EXCLUDE (origin)
    FROM lookups
    ASOF JOIN recent
        ON lookups.origin = recent.origin
        AND recent.observed_at <= lookups.known_at
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
    AND date_trunc('hour', rows.scheduled_departure - INTERVAL 2 HOURS) = known.known_at
    AND known.observed_at > known.known_at - INTERVAL 2 DAYS
