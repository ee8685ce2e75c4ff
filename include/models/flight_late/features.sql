-- Each row once: its key, then one column per feature. Everything here is known the evening before departure.
SELECT
    flight_id,
    carrier,
    origin,
    dest,
    hour,
    minute,
    dayofweek(flight_date) AS weekday,
    late_share_28d,
    flown_28d,
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
