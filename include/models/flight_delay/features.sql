-- One row in, one row out: the key, then a column a feature. Nothing here is known later than the evening before.
SELECT
    flight_id,
    carrier,
    origin,
    dest,
    hour,
    minute,
    dayofweek(flight_date) AS weekday,
    distance,
    sched_arr_time,
    year(flight_date) - plane_year AS plane_age,
    seats,
    temp,
    dewp,
    humid,
    wind_speed,
    pressure,
    visib,
    precip
FROM rows
