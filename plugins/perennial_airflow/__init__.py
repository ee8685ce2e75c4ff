"""The Airflow side of Perennial: DAGs from model specs, where steps run, alerts, sensors and pages in the UI.

Packages, each importing only from those on lines below it (a contract of import-linter in pyproject.toml):

    plugin                        what Airflow loads: timetables and the report pages
    dag_factory                   DAGs of every model, their forms and pages
    execution, sensors, deadlines where a step runs; tasks that wait; runs that are late
    alerting                      incidents, channels, metrics, lineage, the daily summary
    web                           the console and other pages in the UI
    bundle_dags                   what DAGs that belong to no model have in common
    run_request, retries, timetables, arrival, arrival_s3, airflow_connections

Airflow stores the import paths of some objects in its metadata database. They must stay importable under these names
(or every deferred task and serialised DAG must be gone first), and the names of their arguments must stay as well:

- timetables of serialised DAGs: `timetables.EndedPartitions`, `timetables.PublishedPartitions`, and for
  those that earlier versions serialised `timetables.DailyPartitions`
- callbacks of deadlines: `deadlines.missed`
- triggers of deferred tasks: `arrival.LandedTrigger`, `arrival_s3.LandedOnS3`; and the method with which
  such a task continues: `AwaitPartition.landed`, `AwaitQuietHours.go_on`, `StageTask.resume`

A serialised task also holds the module of its operator (``_task_module``). Airflow shows it and reports it to
OpenLineage but does not import it, so operators may move. Links of operators are stored as keys of XCom, the
callbacks of tasks only as the fact that there are some.
"""

__all__ = [
    "alerting",
    "arrival",
    "arrival_s3",
    "bundle_dags",
    "dag_factory",
    "deadlines",
    "execution",
    "plugin",
    "run_request",
    "sensors",
    "timetables",
    "web",
]
