"""The measured functions, each run in a separate process: ``python -m bench.tasks NAME ARGUMENTS RESULT_FILE``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import perennial  # noqa: F401  before the libraries whose allocators it sets
from bench.history import history_make, history_night  # noqa: F401
from bench.wide import columns_data, columns_land, wide_make, wide_verdict  # noqa: F401
from bench.wide_models import wide_new, wide_sample, wide_step  # noqa: F401

MODEL = "flight_late"
#: The sample's model without a feature table, whose cost `features` measures: that of the large tables.
LARGE = "flight_delay"
#: Rows of a commit of the large tables: the lake's writer holds a row group of each of its partitions.
COMMIT_ROWS = 7_000_000


def peak_mb() -> float:
    """Peak resident memory of this process in MiB, without that of its parent when it was forked."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    from perennial.core.runtime import peak_memory_mb

    return float(peak_memory_mb())


class Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self.began, self.cpu_began = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        """Wall and CPU seconds so far."""
        return {"wall": time.monotonic() - self.began, "cpu": time.process_time() - self.cpu_began}


def preload() -> None:
    """Import the libraries that the scheduler has loaded before it forks a task."""
    import importlib

    for name in (
        "numpy",
        "pandas",
        "pyarrow.parquet",
        "duckdb",
        "deltalake",
        "scipy.stats",
        "sklearn",
        "xgboost",
    ):
        importlib.import_module(name)


def first_model(name: str, path: str, label: str) -> dict[str, Any]:
    """Make a model of a file as a person does, and compare it with plain XGBoost."""
    from bench import files

    return files.measure(name, Path(path), label, files.in_new_process)


def ledger_make(records: int) -> dict[str, Any]:
    """Write a long ledger."""
    from bench.governance import ledger_queries

    return ledger_queries.make_ledger(records)


def ledger_queries(records: int) -> dict[str, Any]:
    """Ask a long ledger."""
    from bench.governance import ledger_queries

    return ledger_queries.measure_queries(records)


def console_lake() -> dict[str, Any]:
    """Make the lake whose pages are measured."""
    from bench import console_pages

    return console_pages.make_lake()


def console_pages(empty: str) -> dict[str, float]:
    """Time the console's pages."""
    from bench import console_pages

    return console_pages.measure_pages(empty)


def prepare() -> dict[str, Any]:
    """Land the sample, publish the year, train and promote a champion."""
    from perennial.core.settings import settings
    from perennial.local_stack.sample import landing
    from perennial.spec import catalog
    from perennial.steps import dispatch

    landing.land_sample(settings().landing)
    spec = catalog.load_model_by_name(LARGE)
    dispatch.run("data", spec, start="2013-01-01", end="2013-12-31")
    trained = dispatch.run("train", spec, as_of="2013-03-31")
    promoted = dispatch.run("promote", spec, as_of="2013-03-31", actor="bench")
    if not promoted["promoted"]:
        raise RuntimeError(f"no champion: {trained['gate']['reasons']}")
    return {"version": promoted["version"]}


def replicate(copies: int) -> dict[str, Any]:
    """Replace each published row and label by many copies of it, with different keys."""
    from perennial.storage import delta_tables as tables
    from perennial.storage import duckdb_session

    con = duckdb_session.connect(memory_share=0.5)
    for kind in ("published", "labels"):
        uri = tables.table_uri(kind, LARGE)
        duckdb_session.create_view(con, "source", uri, tables.version(uri))
        rows_by_day = {day: copies * rows for day, rows in tables.rows_by_partition(uri).items()}
        for group in tables.group_by_rows(rows_by_day, COMMIT_ROWS):
            first, last = group.start, group.end
            query = (
                "SELECT flight_id || '-' || copy AS flight_id, source.* EXCLUDE (flight_id) "
                f"FROM source, range({copies}) r(copy) WHERE partition_date BETWEEN '{first}' AND '{last}'"
            )

            def rows(query: str = query) -> Any:
                return con.sql(query).to_arrow_reader(131_072)

            tables.replace(uri, rows, first, last)
    return {}


def one_file(path: str, copies: int) -> dict[str, Any]:
    """Write many copies of all rows of the landed year as one landed partition."""
    import duckdb

    from perennial.core.settings import settings

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    con = duckdb.connect(config={"memory_limit": "2GB"})
    con.execute(
        f"COPY (SELECT flight_id || '-' || copy AS flight_id, f.* EXCLUDE (flight_id) "
        f"FROM read_parquet('{settings().landing}/flights/*.parquet') f, range({copies}) r(copy)) "
        f"TO '{path}.part' (FORMAT parquet, COMPRESSION snappy)"
    )
    Path(f"{path}.part").rename(path)
    return {}


def parse(file: str) -> dict[str, Any]:
    """Run a DAG file with Airflow already imported, as in the DAG processor."""
    import runpy

    from airflow.dag_processing import dagbag  # noqa: F401
    from airflow.sdk import DAG

    clock = Clock()
    names = runpy.run_path(file)
    return clock.read() | {"dags": sum(isinstance(v, DAG) for v in names.values())}


def score(first: str, last: str) -> dict[str, Any]:
    """Time the score step, with its libraries already imported."""
    import deltalake  # noqa: F401
    import duckdb  # noqa: F401

    from perennial.core import patches
    from perennial.spec import catalog
    from perennial.steps import dispatch

    with patches.xgboost_without_sklearn():
        import xgboost  # noqa: F401
    spec = catalog.load_model_by_name(LARGE)
    clock = Clock()
    result = dispatch.run("score", spec, start=first, end=last, force=True)
    return clock.read() | {"rows": result["rows_in"], "memory_mb": peak_mb()}


def predict(first: str, last: str, rows: int) -> dict[str, Any]:
    """Time XGBoost's own prediction of a matrix in memory, by the same champion."""
    import numpy as np
    import pyarrow as pa

    from perennial.features.engine import FeatureQuery
    from perennial.modeling import registry
    from perennial.spec import catalog
    from perennial.storage import delta_tables, duckdb_session

    champion = registry.get_champion(catalog.load_model_by_name(LARGE))
    if champion is None:
        raise RuntimeError("there is no champion")
    model, features = registry.load_model(champion), FeatureQuery(registry.load_spec(champion))
    con = duckdb_session.connect(threads=1)
    duckdb_session.create_view(
        con, "__published", delta_tables.table_uri("published", LARGE), None, first, last
    )
    parts, count = [], 0
    for batch in con.sql("FROM __published").to_arrow_reader(131_072):
        parts.append(model.encoding.encode(features.compute(pa.Table.from_batches([batch]))))
        count += batch.num_rows
        if count >= rows:
            break
    matrix = np.concatenate(parts)
    model.booster.inplace_predict(matrix[:1000], validate_features=False)
    clock = Clock()
    times = 5
    for _ in range(times):
        model.booster.inplace_predict(matrix, validate_features=False)
    return clock.read() | {"rows": len(matrix) * times, "trees": model.booster.num_boosted_rounds()}


def validate(folder: str, day: str) -> dict[str, Any]:
    """Time the data step on one large partition, and the validation within it separately."""
    from perennial.spec import catalog
    from perennial.steps import dispatch
    from perennial.validation import validator as validation

    preload()
    import great_expectations  # noqa: F401

    spec = catalog.load_model_by_name(LARGE)
    suite = json.loads(spec.suite)
    for item in suite["expectations"]:
        item["kwargs"].pop("max_value", None) if "table_row_count" in item["type"] else None
    data = spec.data.model_copy(update={"source": f"{folder}/{{date}}.parquet"})
    spec = spec.model_copy(update={"data": data})
    spec._suite = json.dumps(suite)
    timed = _timed(validation, "validate")
    clock = Clock()
    result = dispatch.run("data", spec, start=day, force=True)
    whole = clock.read()
    seconds, cpu = max(zip(timed["wall"], timed["cpu"], strict=True))  # the other call is for the labels
    return whole | {
        "rows": result["rows_in"],
        "validation": seconds,
        "validation_cpu": cpu,
        "memory_mb": peak_mb(),
    }


def _timed(module: Any, name: str) -> dict[str, list[float]]:
    """Record how long each call of a module's function takes."""
    spent: dict[str, list[float]] = {"wall": [], "cpu": []}
    function: Callable[..., Any] = getattr(module, name)

    def call(*arguments: Any, **named: Any) -> Any:
        clock = Clock()
        try:
            return function(*arguments, **named)
        finally:
            for key, value in clock.read().items():
                spent[key].append(value)

    setattr(module, name, call)
    return spent


def aggregate_checks(path: str) -> dict[str, Any]:
    """Time the aggregates that the sample's suite needs, as one plain query."""
    import duckdb

    con = duckdb.connect()
    clock = Clock()
    con.execute(
        f"""SELECT count(*), count(flight_id), count(DISTINCT hash(flight_id)), count(scheduled_departure),
        count_if(scheduled_departure NOT BETWEEN TIMESTAMP '2013-01-01' AND TIMESTAMP '2014-01-02'),
        count_if(origin NOT IN ('EWR', 'JFK', 'LGA')), count_if(hour NOT BETWEEN 0 AND 23),
        count_if(minute NOT BETWEEN 0 AND 59), count_if(distance NOT BETWEEN 10 AND 6000),
        count_if(NOT regexp_matches(carrier, '^[0-9A-Z]{{2}}$')), count_if(length(dest) <> 3), count(tailnum),
        count(DISTINCT carrier), count(carrier), count(origin), count(dest), count(hour), count(minute),
        count(distance), count(flight_date), count(flight), count(sched_arr_time)
        FROM read_parquet('{path}')"""
    ).fetchall()
    return clock.read()


def drift(as_of: str) -> dict[str, Any]:
    """Time the monitor step over a year, and the counting within it separately."""
    from perennial.core.durations import Duration
    from perennial.monitoring import window_counts
    from perennial.spec import catalog
    from perennial.steps import dispatch

    preload()
    import evidently  # noqa: F401

    spec = catalog.load_model_by_name(LARGE)
    year = spec.monitoring.model_copy(update={"window": Duration(365, "day")})
    spec = spec.model_copy(update={"monitoring": year})
    features, predictions = (
        _timed(window_counts, "count_features"),
        _timed(window_counts, "count_predictions"),
    )
    clock = Clock()
    dispatch.run("monitor", spec, as_of=as_of, force=True)
    whole = clock.read()
    counting = {k: sum(features[k]) + sum(predictions[k]) for k in ("wall", "cpu")}
    return whole | {
        "counting": counting["wall"],
        "counting_cpu": counting["cpu"],
        "memory_mb": peak_mb(),
    }


def aggregate_drift(first: str, last: str) -> dict[str, Any]:
    """Time counting the same features on the same bins by one plain query, and the predictions by another."""
    import duckdb

    from perennial.features import engine as sql
    from perennial.features import reference_tables
    from perennial.features.reference_copies import ReferenceCopies
    from perennial.modeling import registry
    from perennial.monitoring import histograms
    from perennial.spec import catalog
    from perennial.storage import delta_tables, duckdb_session

    champion = registry.get_champion(catalog.load_model_by_name(LARGE))
    assert champion is not None
    spec = registry.load_spec(champion)
    content = json.loads(registry.download_artifact(champion, "reference.json").read_text())
    _, reference = histograms.read_reference(content)
    con = duckdb.connect()
    con.execute("SET TimeZone='UTC'")
    ReferenceCopies(con, spec, reference_tables.sync_to_lake(spec))
    clock = Clock()
    duckdb_session.create_view(
        con, "__published", delta_tables.table_uri("published", LARGE), None, first, last
    )
    con.execute(f"CREATE TEMP VIEW features AS {sql.compose_query(spec)}")
    counts = histograms.count_bins(con, "features", {c: s for c, s in reference.items() if c != "prediction"})
    duckdb_session.create_view(
        con, "predictions", delta_tables.table_uri("predictions", LARGE), None, first, last
    )
    histograms.count_bins(con, "predictions", {"prediction": reference["prediction"]})
    return clock.read() | {"rows": counts.rows}


def train(as_of: str) -> dict[str, Any]:
    """Time the train step with few trees: its memory does not depend on their number."""
    from perennial.spec import catalog
    from perennial.steps import dispatch

    spec = catalog.load_model_by_name(LARGE)
    search = spec.training.search.model_copy(update={"trials": 0})
    training = spec.training.model_copy(update={"rounds": 10, "search": search, "window": None})
    spec = spec.model_copy(update={"training": training})
    clock = Clock()
    result = dispatch.run("train", spec, as_of=as_of, force=True)
    return clock.read() | {
        "digest": result["digest"],
        "rows": sum(result["rows"].values()),
        "external": "external memory" if result["external_memory"] else "in memory",
        "memory_mb": peak_mb(),
    }


def loop(force: bool = False) -> dict[str, Any]:
    """Time the loop's steps, one after the other, in this process."""
    from perennial.spec import catalog
    from perennial.steps import dispatch

    spec = catalog.load_model_by_name(MODEL)
    seconds = {}
    for step, arguments in STEPS:
        clock = Clock()
        dispatch.run(step, spec, **arguments, **({"force": True} if force and step in HEAVY else {}))
        seconds[step] = clock.read()["wall"]
    return seconds


HEAVY = ("data", "train", "score", "monitor")
STEPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("data", {"start": "2013-01-01", "end": "2013-12-31"}),
    ("train", {"as_of": "2013-03-31"}),
    ("promote", {"as_of": "2013-03-31", "actor": "bench"}),
    ("score", {"start": "2013-01-01", "end": "2013-12-31"}),
    ("monitor", {"as_of": "2013-04-28"}),
    ("decide", {"as_of": "2013-04-28", "actor": "bench", "backfill": True}),
)

if __name__ == "__main__":
    outcome = globals()[sys.argv[1]](**json.loads(sys.argv[2]))
    Path(sys.argv[3]).write_text(json.dumps({"result": outcome, "memory_mb": peak_mb()}))
    from perennial.core.runtime import flush_and_exit

    flush_and_exit(0)  # a native thread must not turn a measured process into an abort
