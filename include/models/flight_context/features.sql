-- Adds to each row its aircraft and the weather known two hours before departure: the latest observation made by
-- then (ASOF), never a later one, however complete the reference table has become since. Stations observe on the hour,
-- so the weather is looked up once an airport and hour, and not for each of its flights.
WITH known AS (
    SELECT asked.origin, asked.by_then, weather.* EXCLUDE (origin)
    FROM (
        SELECT DISTINCT origin, date_trunc('hour', scheduled_departure - INTERVAL 2 HOURS) AS by_then FROM rows
    ) AS asked
    ASOF LEFT JOIN weather
        ON asked.origin = weather.origin
        AND weather.observed_at <= asked.by_then
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
