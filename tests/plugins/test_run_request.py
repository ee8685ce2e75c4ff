"""What a run was triggered for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import AirflowFailException, ParamValidationError
from airflow.utils.types import DagRunType

from perennial.core import dates
from perennial.core.errors import PerennialError
from perennial.core.partitions import DAILY
from perennial.spec.model_spec import ModelSpec
from perennial.spec.policies import ApprovalSpec
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
        (None, {"start": "1990-02-01", "end": "2013-02-01"}, "at most 3,660"),
    ],
)
def test_partitions_that_make_no_sense(key: str | None, fields: dict[str, Any], cause: str) -> None:
    with pytest.raises(PerennialError, match=cause) as caught:
        run_request.partitions(context(key, **fields))
    assert "What to do: " in str(caught.value)


def test_a_mistyped_year_is_refused() -> None:
    """A result of such a date would count as the latest one until that day has come."""
    for make in (
        lambda: run_request.partitions(context("2999-01-01")),
        lambda: run_request.partitions(context(start="2999-01-01")),
        lambda: run_request.partitions(context(start=dates.add_days(DAILY.latest(), -1),
                                               end=dates.add_days(DAILY.latest(), 1))),
        lambda: run_request.as_of(context("2999-01-01")),
        lambda: run_request.as_of(context(as_of="2999-01-01")),
    ):  # fmt: skip
        with pytest.raises(PerennialError, match=r"is in the future(.|\n)*What to do: check the year"):
            make()
    today = DAILY.latest()
    assert run_request.as_of(context(today)).start == run_request.partitions(context(today)).start == today


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


def of_task(**extra: Any) -> SimpleNamespace:
    """An asset event of a task."""
    return SimpleNamespace(extra=extra, source_dag_id="x.monitor", source_task_id="request_retraining")


def of_rest_api(**extra: Any) -> SimpleNamespace:
    """An asset event of Airflow's REST API, which adds ``from_rest_api`` only to an extra that the request has."""
    return SimpleNamespace(extra=extra, source_dag_id=None, source_task_id=None)


def test_the_reason_comes_from_the_event_first() -> None:
    by_hand = context(reason="I want one")
    assert run_request.reason(by_hand) == "I want one"
    assert run_request.reason(context()) == ""
    events = [of_task(**e) for e in ({"reason": "drift"}, {"reason": "drift"}, {}, {"reason": "age"})]
    by_hand["triggering_asset_events"] = {"retraining/x": events}
    assert run_request.reason(by_hand) == "drift; age"
    assert run_request.reason(context(reason=" \t ")) == ""


def test_a_retraining_is_requested_by_the_policy_or_person_of_the_event_and_not_by_who_runs_it() -> None:
    run = context(user="ann")
    assert run_request.requested_by(run) == "ann"
    extras = ({"requested_by": "retraining policy"}, {"requested_by": "bob"}, {}, {"requested_by": "bob"})
    run["triggering_asset_events"] = {"retraining/x": [of_task(**e) for e in extras]}
    assert run_request.requested_by(run) == "retraining policy, bob"


def test_what_an_event_of_the_rest_api_says_is_not_believed(spec: ModelSpec) -> None:
    """Whoever requests a training could otherwise name somebody else, and approve the promotion."""
    run = context()
    events = [of_rest_api(requested_by="bob", reason="drift", from_rest_api=True), of_task(reason="age")]
    for event in (events[0], of_rest_api()):
        run["triggering_asset_events"] = {"retraining/x": [event]}
        assert run_request.requested_by(run) == "REST API"
        assert run_request.reason(run) == "an asset event of Airflow's REST API"
    run["triggering_asset_events"] = {"retraining/x": events}
    assert run_request.reason(run) == "age; an asset event of Airflow's REST API"
    run["task"] = SimpleNamespace(spec=spec)
    assert run_request.requested_by(run) == "REST API"
    gate = spec.gate.model_copy(update={"approval": ApprovalSpec(who=["ada"])})
    run["task"] = SimpleNamespace(spec=spec.model_copy(update={"gate": gate}))
    with pytest.raises(PerennialError, match="does not say who made it"):
        run_request.requested_by(run)
    run["triggering_asset_events"] = {"retraining/x": events[1:]}
    assert run_request.requested_by(run) == "scheduler"


FIELDS = ("start", "end", "force")


@pytest.mark.parametrize(
    ("conf", "backfill"),
    [
        ({"start": "2013-02-01"}, False),
        ({}, True),
        ({"start": "2013-02-01", "end": "2013-02-02", "force": True}, False),
        ({"start": None, "end": "", "force": True}, True),  # what the UI sends for an empty form
        ({"airflow/task_span_detail_level": 2, "start": "2013-02-01"}, False),
    ],
)
def test_a_configuration_that_a_run_may_have(conf: dict[str, Any], backfill: bool) -> None:
    assert run_request.conf_problem("m.data", conf, FIELDS, backfill=backfill) is None


@pytest.mark.parametrize(
    ("conf", "fields", "backfill", "text"),
    [
        ({"strat": "2013-02-01"}, FIELDS, False,
         "m.data has no field 'strat' (did you mean 'start'?)\n"
         "  What to do: trigger it with the fields of its form: start, end, force"),
        ({"zzz": 1, "forced": True}, FIELDS, True,
         "m.data has no field 'zzz', 'forced' (did you mean 'force'?)\n"
         "  What to do: trigger it with the fields of its form: start, end, force"),
        ({"x": 1}, (), False,
         "m.data has no field 'x'\n  What to do: trigger it with no configuration: it has no fields"),
        ({"start": "2013-02-01", "end": "2013-02-09"}, FIELDS, True,
         "a backfill of m.data has one run for each partition of its range, and also start 2013-02-01 and end "
         "2013-02-09\n  What to do: create it again, and leave start, end empty"),
        ({"as_of": "2013-02-01"}, ("as_of", "force"), True,
         "a backfill of m.data has one run for each partition of its range, and also as_of 2013-02-01\n"
         "  What to do: create it again, and leave as_of empty"),
    ],
)  # fmt: skip
def test_a_configuration_that_a_run_must_not_have(
    conf: dict[str, Any], fields: tuple[str, ...], backfill: bool, text: str
) -> None:
    assert str(run_request.conf_problem("m.data", conf, fields, backfill=backfill)) == text


def test_a_task_of_a_run_with_a_field_that_the_form_lacks_fails_for_good() -> None:
    dag = SimpleNamespace(dag_id="m.data", params={"start": None, "force": False})
    run = SimpleNamespace(conf={"stort": "2013-02-01"}, run_type=DagRunType.MANUAL, partition_key=None)
    with pytest.raises(AirflowFailException, match=r"no field 'stort' \(did you mean 'start'\?\)"):
        run_request.check_conf({"dag_run": run, "task": SimpleNamespace(dag=dag)})  # type: ignore[typeddict-item]
    run.conf = {"start": "2013-02-01"}
    run_request.check_conf({"dag_run": run, "task": SimpleNamespace(dag=dag)})  # type: ignore[typeddict-item]
    run.partition_key = "2013-02-01"
    with pytest.raises(AirflowFailException, match=r"partition key 2013-02-01 and also start 2013-02-01"):
        run_request.check_conf({"dag_run": run, "task": SimpleNamespace(dag=dag)})  # type: ignore[typeddict-item]
    run.conf = None
    run_request.check_conf({"dag_run": run, "task": SimpleNamespace(dag=dag)})  # type: ignore[typeddict-item]


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
        (params.rollback, {"reason": " \t\n "}),
        (params.rollback, {"reason": "worse since May", "to_version": 0}),
        (params.rollback, {"reason": "worse since May", "to_version": "latest"}),
    ],
)
def test_forms_refuse(spec: ModelSpec, form: Any, given: dict[str, Any]) -> None:
    filled = ParamsDict(form() if form is params.rollback else form(spec))
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
def test_forms_accept(spec: ModelSpec, form: Any, given: dict[str, Any]) -> None:
    filled = ParamsDict(form() if form is params.rollback else form(spec))
    filled.update(given)
    filled.validate()
