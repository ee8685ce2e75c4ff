"""What a run was triggered for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import ParamValidationError
from airflow.utils.types import DagRunType

from perennial.core.errors import PerennialError
from perennial_airflow import run_request
from perennial_airflow.dag_factory import params
from perennial_airflow.run_request import PartitionRange


def context(key: str | None = None, kind: str = "manual", user: str | None = None, **fields: Any) -> Any:
    run = SimpleNamespace(partition_key=key, run_type=DagRunType(kind), triggering_user_name=user)
    return {"dag_run": run, "params": fields, "triggering_asset_events": {}}


@pytest.mark.parametrize(
    ("key", "fields", "expected"),
    [
        ("2013-02-01", {}, PartitionRange("2013-02-01", scheduled=True)),
        (
            "2013-02-01",
            {"start": None, "end": "", "force": False},
            PartitionRange("2013-02-01", scheduled=True),
        ),
        (None, {"start": "2013-02-01"}, PartitionRange("2013-02-01")),
        (None, {"start": "2013-02-01", "end": "2013-02-01"}, PartitionRange("2013-02-01")),
        (None, {"start": "2013-02-01", "end": "2013-02-28"}, PartitionRange("2013-02-01", "2013-02-28")),
    ],
)
def test_partitions(key: str | None, fields: dict[str, Any], expected: PartitionRange) -> None:
    assert run_request.partitions(context(key, **fields)) == expected


@pytest.mark.parametrize(
    ("key", "fields", "cause"),
    [
        (None, {}, "neither a partition key nor a first partition"),
        (None, {"end": "2013-02-01"}, "neither a partition key nor a first partition"),
        ("2013-02-01", {"start": "2013-02-01"}, "also start 2013-02-01"),
        ("2013-02-01", {"end": "2013-02-03"}, "end 2013-02-03"),
        ("2013-02-30", {}, "'2013-02-30', not a date"),
        (None, {"start": "2013-02-02", "end": "2013-02-01"}, "is before start"),
        (None, {"start": "../../etc"}, "not a date"),
        (None, {"start": "2013-02-01", "end": "2999-01-01"}, "more than ten years"),
    ],
)
def test_partitions_that_make_no_sense(key: str | None, fields: dict[str, Any], cause: str) -> None:
    with pytest.raises(PerennialError, match=cause) as caught:
        run_request.partitions(context(key, **fields))
    assert "What to do: " in str(caught.value)


def test_as_of() -> None:
    assert run_request.as_of(context("2013-02-01")) == PartitionRange("2013-02-01", scheduled=True)
    assert run_request.as_of(context("2013-02-01", as_of="2013-02-01")) == PartitionRange(
        "2013-02-01", scheduled=True
    )
    assert run_request.as_of(context(as_of="2013-02-01")) == PartitionRange("2013-02-01")
    for broken in (context(), context("2013-02-01", as_of="2013-02-02"), context(as_of="soon")):
        with pytest.raises(PerennialError):
            run_request.as_of(broken)


def test_who_and_how() -> None:
    assert run_request.actor(context()) == "scheduler"
    assert run_request.actor(context(user="ann")) == "ann"
    assert run_request.is_backfill(context(kind="backfill"))
    assert not any(
        run_request.is_backfill(context(kind=k)) for k in ("manual", "scheduled", "asset_triggered")
    )
    assert run_request.forced(context(force=True)) and not run_request.forced(context())


def test_the_reason_comes_from_the_event_first() -> None:
    by_hand = context(reason="I want one")
    assert run_request.reason(by_hand) == "I want one"
    assert run_request.reason(context()) == ""
    events = [
        SimpleNamespace(extra=e) for e in ({"reason": "drift"}, {"reason": "drift"}, {}, {"reason": "age"})
    ]
    by_hand["triggering_asset_events"] = {"retraining/x": events}
    assert run_request.reason(by_hand) == "drift; age"


@pytest.mark.parametrize(
    ("form", "given"),
    [
        (params.partitions, {"start": "01.02.2013"}),
        (params.partitions, {"start": "2013-02-30"}),
        (params.partitions, {"force": "yes"}),
        (params.monitoring, {"as_of": "x"}),
        (params.training, {"reason": "x" * 501}),
        (params.rollback, {}),
        (params.rollback, {"reason": ""}),
        (params.rollback, {"reason": "worse since May", "to_version": 0}),
        (params.rollback, {"reason": "worse since May", "to_version": "latest"}),
    ],
)
def test_forms_refuse(form: Any, given: dict[str, Any]) -> None:
    filled = ParamsDict(form())
    with pytest.raises(ParamValidationError):
        filled.update(given)
        filled.validate()


@pytest.mark.parametrize(
    ("form", "given"),
    [
        (params.partitions, {}),
        (params.partitions, {"start": "2013-02-01", "end": "2013-02-28", "force": True}),
        (params.monitoring, {"as_of": "2013-02-01"}),
        (params.training, {"as_of": "2013-02-01", "reason": "new feature"}),
        (params.rollback, {"reason": "worse since May"}),
        (params.rollback, {"reason": "worse since May", "to_version": 3}),
    ],
)
def test_forms_accept(form: Any, given: dict[str, Any]) -> None:
    filled = ParamsDict(form())
    filled.update(given)
    filled.validate()
