"""The DAG that erases rows: its form takes the name of a request, never a key."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from airflow.sdk.exceptions import AirflowFailException, ParamValidationError

from perennial.governance import erasure_keys
from perennial.spec import catalog
from perennial.storage import delta_tables, ledger
from perennial.storage.ledger import LedgerKind
from perennial_airflow.execution.erasure import dags
from support import toys

KEY = "canary.key"


@pytest.fixture
def task(empty_home: Path) -> Any:
    return dags()["perennial.erase"].get_task("erase")


def run(task: Any, **params: Any) -> Any:
    context = {
        "params": {"hidden": False} | params, "run_id": "manual",
        "dag_run": SimpleNamespace(triggering_user_name="grace"),
    }  # fmt: skip
    return type(task).execute.__wrapped__(task, context)


def test_the_task_erases_the_rows_of_a_request(
    task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    monkeypatch.setattr(catalog, "load_model_by_name", lambda _: spec)
    uri = delta_tables.table_uri("published", "toy")
    rows = toys.rows("binary", toys.FIRST, 3).set_column(0, "id", [[KEY, "2", "3"]])
    rows = rows.append_column(delta_tables.PARTITION, pa.array([toys.FIRST] * 3))
    delta_tables.replace(uri, rows, toys.FIRST)
    name = erasure_keys.request_erasure(spec, [{"id": KEY}], "ada").identifier
    with caplog.at_level("INFO"):
        result = run(task, model="toy", request=name)
    assert result["rows"]["published"] == 1 and delta_tables.rows_by_partition(uri) == {toys.FIRST: 2}
    (record,) = ledger.records("toy", LedgerKind.ERASURE)
    assert (record["actor"], record["evidence"]["requested_by"]) == ("grace", "ada")
    assert "Rows removed of toy: 1 of published." in caplog.text
    assert KEY not in caplog.text + str(result) + str(record)


def test_a_request_that_is_not_there_is_not_tried_again(
    task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    monkeypatch.setattr(catalog, "load_model_by_name", lambda _: spec)
    with pytest.raises(AirflowFailException, match=r"no request '0{16}'"):
        run(task, model="toy", request="0" * 16)


def test_the_form_refuses_a_key(empty_home: Path) -> None:
    params = dags()["perennial.erase"].params
    with pytest.raises(ParamValidationError):
        params["request"] = KEY
