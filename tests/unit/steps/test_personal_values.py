"""Personal columns as features: no value of theirs is in what a training, a scoring or a verdict leaves behind."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.core.errors import PerennialError
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch
from perennial.storage import delta_tables, ledger
from support import canary, toys
from support.canary import NUMBER, TEXT

REASON = "the tests need a feature of personal data"
SQL = "SELECT id, x, z, k, mail, salary, length(mail) AS n, lower(mail) AS m, salary * 2 AS double FROM rows"
#: The row of each day that has the values to search for; among the first, of which MLflow gets an example.
CANARY_ROW = 2
#: Fails on the canary alone.
FAILING = "SELECT id, x, z, k, mail::INTEGER AS n FROM rows"


@pytest.fixture
def watch(mlflow_home: Path, mlflow_folder: Path, caplog: Any, capfd: Any) -> canary.Watch:
    return canary.Watch([mlflow_home, mlflow_folder], caplog, capfd)


@pytest.fixture
def make(tmp_path: Path, mlflow_home: Path) -> Callable[..., ModelSpec]:
    """Make a model with personal columns, and nothing published."""

    def make(
        sql: str, features: list[str], categorical: list[str], task: str = "binary", **changes: Any
    ) -> ModelSpec:
        columns = {"id": "string", "seen_at": "timestamp", "x": "number", "z": "number", "k": "string",
                   "place": "string", "mail": "string", "salary": "number"}  # fmt: skip
        section = {
            "categorical": ["k", *categorical],
            "personal": dict.fromkeys(features, REASON),
            "references": [],
        }
        data = {"columns": columns, "personal": ["mail", "salary"]}
        return toys.model(
            tmp_path / "models", toys.unique("personal"), task, sql, data=data, features=section, **changes
        )

    return make


def publish(spec: ModelSpec, first: str, days: int, mails: Callable[[int], str], salary: float) -> None:
    """Publish rows and labels; one row of each day has a given mail and salary."""
    for day in dates.dates(first, dates.add_days(first, days - 1)):
        table = toys.rows(spec.task, day)
        n = len(table)
        salaries = [salary if i == CANARY_ROW else 1000.0 + i for i in range(n)]
        rows = table.append_column("mail", pa.array([mails(i) for i in range(n)]))
        rows = rows.append_column("salary", pa.array(salaries))
        labels = toys.labels(spec.task, table).rename_columns(["id", "label"])
        for kind, content in (("published", rows), ("labels", labels)):
            content = content.append_column(delta_tables.PARTITION, pa.array([day] * n))
            delta_tables.replace(delta_tables.table_uri(kind, spec.name), content, day)


def run(watch: canary.Watch, step: str, spec: ModelSpec, **arguments: Any) -> Any:
    """Run a step as Airflow, the command line and a pod do, and search what it leaves."""
    try:
        outcome: Any = dispatch.run(step, spec, **arguments)
    except PerennialError as error:
        outcome = error
    watch.add(outcome)
    watch.check()
    return outcome


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_model_with_personal_features(
    make: Callable[..., ModelSpec], watch: canary.Watch, task: str
) -> None:
    spec = make(SQL, ["mail", "salary", "n", "m", "double"], ["mail", "m"], task)
    publish(
        spec,
        toys.FIRST,
        toys.DAYS,
        lambda i: TEXT if i == CANARY_ROW else f"person{i % 7}@example.org",
        NUMBER,
    )
    trained = run(watch, "train", spec, as_of=toys.LAST)
    assert trained["status"] == "trained", "the search has passed over everything that the training wrote"
    run(watch, "promote", spec, as_of=toys.LAST, actor="test")
    scored = run(watch, "score", spec, start=dates.add_days(toys.LAST, -6), end=toys.LAST)
    assert scored["rows_out"] == 7 * toys.ROWS
    verdict = run(watch, "monitor", spec, as_of=toys.LAST)
    assert verdict["signals"]["skew"]["state"] == "ok", "scoring hashes categories as training does"
    run(watch, "decide", spec, as_of=toys.LAST, actor="test")

    if task == "binary":
        again = run(watch, "train", spec, as_of=toys.LAST, force=True)
        assert again["digest"] == trained["digest"], "the salt of the hashes is the same for the same data"
    version = registry.get_version(spec.name, trained["version"])
    encoding = registry.load_model(version).encoding
    assert set(encoding.hashed) == {"mail", "m"} and len(encoding.categories["mail"]) == 8
    assert encoding.categories["k"] == ["a", "b", "c"]
    columns = registry.load_json_artifact(version, "reference.json")["columns"]
    assert columns["salary"]["edges"] == columns["double"]["edges"] == columns["n"]["edges"] == []
    assert columns["mail"]["hashed"] and columns["x"]["edges"]


def test_features_that_fail_on_a_person(make: Callable[..., ModelSpec], watch: canary.Watch) -> None:
    spec = make(FAILING, ["n"], [], monitoring={"window": "2 days", "min_rows": 10})
    publish(spec, toys.FIRST, toys.DAYS, lambda i: str(i), NUMBER)
    run(watch, "train", spec, as_of=toys.LAST)
    run(watch, "promote", spec, as_of=toys.LAST, actor="test")
    day = dates.add_days(toys.LAST, 1)
    publish(spec, day, 2, lambda i: TEXT if i == CANARY_ROW else str(i), NUMBER)
    for step, arguments in (
        ("score", {"start": day}),
        ("score", {"start": toys.LAST, "end": day}),
        ("monitor", {"as_of": day}),
        ("train", {"as_of": dates.add_days(day, 1)}),
    ):
        error = run(watch, step, spec, **arguments)
        assert isinstance(error, PerennialError), step
        assert "Conversion Error" in str(error), "the kind of the error is kept"
    failures = [r for r in ledger.records(spec.name) if r["decision"] == "failed"]
    assert failures and "Conversion Error" in json.dumps(failures, default=str)


def test_an_unseen_person_is_counted_only(make: Callable[..., ModelSpec], watch: canary.Watch) -> None:
    spec = make("SELECT id, x, z, k, mail FROM rows", ["mail"], ["mail"])
    spec = spec.model_copy(update={"features": spec.features.model_copy(update={"unseen": "stop"})})
    spec._sql, spec._suite = "SELECT id, x, z, k, mail FROM rows", json.dumps(toys.SUITE)
    publish(spec, toys.FIRST, toys.DAYS, lambda i: f"person{i % 7}", NUMBER)
    run(watch, "train", spec, as_of=toys.LAST)
    run(watch, "promote", spec, as_of=toys.LAST, actor="test")
    day = dates.add_days(toys.LAST, 1)
    publish(spec, day, 1, lambda i: TEXT if i == CANARY_ROW else f"person{i % 7}", NUMBER)
    error = run(watch, "score", spec, start=day)
    assert isinstance(error, PerennialError) and "1 rows with a category unseen in training" in str(error)


def test_every_form_of_a_value_is_searched_for(tmp_path: Path, caplog: Any, capfd: Any) -> None:
    for value in (TEXT, NUMBER):
        for form, raw in canary.forms(value).items():
            (tmp_path / "file").write_bytes(b"\0" + raw)
            with pytest.raises(AssertionError):
                canary.Watch([tmp_path], caplog, capfd).check()
            assert form


def test_a_value_in_a_compressed_file_is_seen(tmp_path: Path, caplog: Any, capfd: Any) -> None:
    with zipfile.ZipFile(tmp_path / "report.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("page.html", f"<p>{TEXT}</p>" * 50)
    with pytest.raises(AssertionError):
        canary.Watch([tmp_path], caplog, capfd).check()
