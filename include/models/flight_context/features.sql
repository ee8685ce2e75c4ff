-- Adds to each row its aircraft and the weather known two hours before departure: the latest observation made by
-- then (ASOF), never a later one, however complete the reference table has become since.
SELECT
    rows.*,
    planes.year AS plane_year,
    planes.seats,
    weather.temp,
    weather.dewp,
    weather.humid,
    weather.wind_speed,
    weather.pressure,
    weather.visib,
    weather.precip
FROM rows
LEFT JOIN planes USING (tailnum)
ASOF LEFT JOIN weather
    ON rows.origin = weather.origin
    AND weather.observed_at <= rows.scheduled_departure - INTERVAL 2 HOURS
