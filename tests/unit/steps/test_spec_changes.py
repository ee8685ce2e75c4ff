"""A spec that changes when its model is published, trained and scored.

The next steps give the right result, or say what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_args

import pyarrow as pa
import pytest
from pydantic import BaseModel, TypeAdapter

from conftest import Trained
from perennial.cli.check import preflight
from perennial.core import dates
from perennial.core.errors import DataError, RegistryError, SpecError
from perennial.ingestion import model_tables
from perennial.ingestion.run import label_inputs, row_inputs
from perennial.modeling import registry
from perennial.spec.gate.fairness import FairnessGate
from perennial.spec.gate.risk import RiskSpec
from perennial.spec.model_spec import ModelSpec
from perennial.spec.policies import ApprovalSpec, QuietHours, SliceGate
from perennial.spec.spec_changes import CHANGES, Effect, as_trained, changed_keys, target_difference
from perennial.spec.text_format import TextFormatSpec
from perennial.steps.data import data
from perennial.steps.decide import decide
from perennial.steps.monitor import monitor
from perennial.steps.promote import promote
from perennial.steps.rollback import rollback
from perennial.steps.score import score
from perennial.steps.train import train
from perennial.storage import delta_tables, ledger
from support import lake, toys

pytestmark = pytest.mark.usefixtures("without_data_docs", "without_data_profile", "without_drift_report")

WEEK = dates.add_days(toys.LAST, -6)
NEXT = dates.add_days(toys.LAST, 1)


def keys(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a section and of the sections within it, of lists and mappings the key alone."""
    for name, field in kind.model_fields.items():
        annotation = field.annotation
        parts = [annotation, *get_args(annotation)]
        sections = [p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)]
        if sections and str not in parts and str(annotation).split("[")[0] not in ("list", "dict"):
            yield from keys(sections[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_each_key_of_a_spec_says_what_its_change_means() -> None:
    every = [*keys(ModelSpec), "features.sql", "expectations.json", "feature_set.yaml", "feature_table.yaml"]
    assert len(every) == len(set(every)) > 80
    assert sorted(CHANGES) == sorted(every)


def changed(spec: ModelSpec, sql: str | None = None, **changes: Any) -> ModelSpec:
    """The model with other keys; its folder is written again."""
    content = spec.model_dump(mode="json")
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(content.get(key), dict) else value
    present = ModelSpec.model_validate(content)
    present._folder, present._sql, present._suite = spec.folder, sql or spec.sql, spec.suite
    return present


def begin_generation(spec: ModelSpec) -> None:
    plan = model_tables.plan_generation(spec)
    model_tables.begin_generation(spec, plan, reason="the spec changed", actor="ann")


#: Another value of each key. There is one engine; a renamed model and shared features have tests of their own.
OTHER: dict[str, Any] = {
    "task": "regression", "owner": "others", "description": "Another.", "tags": ["new"], "group": "k",
    "risk.level": "high", "risk.without": {"fairness": "no column says who is concerned"},
    "data.source": "{landing}/other/{date}.parquet", "data.key": ["id", "k"], "data.event_time": "other_time",
    "data.columns": {"z": "string"}, "data.personal": ["place"], "data.extra_columns": "stop", "data.arrival": "wait",
    "data.arrival_hours": 2.0, "data.quarantine_limit": 0.1,
    "label.expression": "y + 1", "label.source": "{landing}/other_labels/{date}.parquet",
    "label.columns": {"y": "number"}, "label.personal": ["id"], "label.arrives_after": "2 days",
    "features.tables": [{"table": "others"}],
    "features.sets": ["others"], "features.categorical": [], "features.personal": {"x": "a reason that is long enough"},
    "features.references": [], "features.category_order": "label", "features.unseen": "stop",
    "training.objective": "binary:logitraw", "training.device": "cpu",
    "training.window": "12 days", "training.holdout": "4 days", "training.rounds": 9,
    "training.early_stopping_rounds": 2, "training.early_stopping_cuts": 3, "training.max_rows": 2000,
    "training.params": {"max_depth": 2}, "training.search.trials": 3, "training.search.budget": 1.0,
    "training.search.minutes": 1.0,
    "training.search.space": {"max_depth": {"choices": [2]}}, "training.seed": 1,
    "training.refit": True, "training.study_minutes": 1.0,
    "gate.metric": "brier", "gate.margin": 0.1, "gate.confidence": 0.9, "gate.bootstrap_samples": 100,
    "gate.bootstrap_unit": "partitions", "gate.external_change": "follow", "gate.beat_baseline": False,
    "gate.bounds": {"brier": {"max": 0.5}}, "gate.slices.max_worsening": 0.1, "gate.slices.min_rows": 200,
    "gate.fairness.groups": [["k", "place"]], "gate.fairness.values": {"k": ["a"]}, "gate.fairness.edges": {"x": [0.0]},
    "gate.fairness.bounds": {"error_rate": {"min_ratio": 0.8}}, "gate.fairness.threshold": 0.3,
    "gate.fairness.min_rows": 100,
    "gate.approval.who": ["grace"], "gate.approval.hours": 5, "gate.approval.reasons": ["reviewed"],
    "monitoring.window": "5 days", "monitoring.reference": "rolling", "monitoring.min_rows": 10,
    "monitoring.psi_threshold": 0.3, "monitoring.noise_floor": False, "monitoring.null_jump": 0.2,
    "monitoring.drift_share": 0.2, "monitoring.min_evaluated_share": 0.4, "monitoring.persistence": [1, 2],
    "monitoring.performance_drop": 0.1, "monitoring.false_alarms_per_year": 1.0, "monitoring.slices": ["k"],
    "monitoring.fairness": ["place"], "monitoring.fairness_gap": 0.1, "monitoring.new_categories": 0.1,
    "monitoring.volume_factor": 3.0, "monitoring.report_rows": 50,
    "retraining.triggers": ["age"], "retraining.mode": "approval", "retraining.approval_hours": 5,
    "retraining.min_gain": 0.2, "retraining.windows": ["sliding"], "retraining.trial": "3 days",
    "retraining.ab_share": 0.1, "retraining.cooldown": "1 day", "retraining.budget": 3,
    "retraining.budget_period": "30 days", "retraining.regular": "9 days",
    "retraining.max_age": "90 days", "retraining.abandoned_after": "3 days", "retraining.new_rows": 0.9,
    "retraining.gpu_hours": 3.0, "retraining.freeze": [{"start": "2024-05-01", "end": "2024-05-02", "reason": "audit"}],
    "retraining.quiet_hours.from_hour": 8, "retraining.quiet_hours.to_hour": 10,
    "retraining.quiet_hours.timezone": "Europe/Berlin",
    "schedule.data": "0 3 * * *", "schedule.monitor": "0 7 * * *", "schedule.start": "2023-12-01",
    "schedule.end": "2025-01-01",
    "retention.rows": "400 days", "retention.predictions": "90 days", "retention.served": "30 days",
    "retention.reports": "90 days", "retention.versions": 5, "retention.table_history": "60 days",
    "predictions.connection": "shop", "predictions.table": "predictions",
    "compute": {"train": "gpu"}, "limits": {"train": {"retries": 0}},
    "alerts.channels": [{"name": "ops", "kind": "webhook", "url": "http://localhost"}],
    "alerts.mute": [{"signals": ["*"], "until": "2024-03-01", "reason": "a strike"}],
    "features.sql": "SELECT id, x FROM rows", "expectations.json": '{"expectations": []}',
    "data.every": "month", "data.timezone": "Europe/Berlin", "data.week_starts": "sunday", "data.row_number": "z",
    "training.candidates": ["linear"],
}  # fmt: skip
#: Another value of each key of ``card``.
CARD: dict[str, Any] = {
    "license": "apache-2.0", "risks": [{"risk": "A person is refused."}], "groups": [{"group": "Travellers"}],
    "intended_use": ["A use."], "users": ["A user."], "out_of_scope": ["A use."], "limitations": ["A limit."],
    "tradeoffs": ["A trade-off."], "standards": ["A standard."],
    **dict.fromkeys(("provider", "oversight", "deployment", "instructions", "data_origin", "metric_choice", "security",
                     "risk_management", "declaration", "post_market"), "A sentence."),
}  # fmt: skip
OTHER |= {f"card.{key}": value for key, value in CARD.items()}
#: Another value of each key of ``data.format`` and ``label.format``.
FORMAT: dict[str, Any] = {
    "delimiter": ";", "quote": "'", "escape": "backslash", "encoding": "utf-16", "skip_lines": 1, "unnamed": "z",
    "decimal": ",", "thousands": "space", "nulls": ["-"], "date_format": ["%d.%m.%Y"], "date_formats": {"z": ["iso"]},
    "true_values": ["J"], "false_values": ["N"], "sheet": "Rows", "header": False, "comment": "#", "footer_lines": 1,
    "extra_cell": "last", "skip_after_header": 1, "duplicate_names": "number",
}  # fmt: skip
OTHER |= {f"{feed}.format.{key}": value for feed in ("data", "label") for key, value in FORMAT.items()}
#: Sections that are not given by default.
SECTIONS: dict[str, Any] = {
    "quiet_hours": QuietHours(from_hour=1, to_hour=2), "format": TextFormatSpec(), "slices": SliceGate(),
    "approval": ApprovalSpec(who=["ada"]), "risk": RiskSpec(level="low"),
    "fairness": FairnessGate(groups=["k"], bounds={"demographic_parity": {"max_difference": 0.1}}),
}  # fmt: skip


def other(spec: ModelSpec, key: str) -> ModelSpec:
    """The model with another value of one key; only that it influences what it should is of interest."""
    present = spec.model_copy(deep=True)
    section: Any = present
    names = key.split(".")
    if key == "features.sql":
        present._sql = OTHER[key]
    elif key == "expectations.json":
        present._suite = OTHER[key]
    else:
        for name in names[:-1]:
            if getattr(section, name) is None:
                section.__dict__[name] = SECTIONS[name].model_copy()
            section = getattr(section, name)
        before, value = getattr(section, names[-1]), OTHER[key]
        merged = before | value if isinstance(before, dict) else value
        # Without the rules between keys, which `tests/unit/spec/broken` tries.
        kind: Any = type(section).model_fields[names[-1]].annotation
        section.__dict__[names[-1]] = TypeAdapter(kind).validate_python(merged)
        assert getattr(section, names[-1]) != before
    if key == "data.week_starts":
        present.data.__dict__["every"] = "week"
    return present


def influence(before: ModelSpec, after: ModelSpec) -> set[str]:
    """What has to be made again: published rows or labels, a version, or the tables themselves."""
    concerned = {
        "rows": row_inputs(after) != row_inputs(before),
        "labels": label_inputs(after) != label_inputs(before),
        "version": after.digest != before.digest,
        "tables": any(state.conflicts or state.widened for state in model_tables.compare(after)),
    }
    return {what for what, changes in concerned.items() if changes}


def has_effect(key: str, influences: set[str]) -> bool:
    """Whether a change of a key influences what its row names."""
    effect = CHANGES[key].effect
    if effect is Effect.NEXT_RUN:
        policy = key.startswith(
            ("monitoring.", "retraining.")
        )  # of verdicts and decisions, made again when asked for
        return influences == (
            {"version"} if policy else {"version", "labels"} if key.startswith("label.") else set()
        )
    if effect is Effect.BACKFILL:
        return bool(influences & {"rows", "labels"}) and "tables" not in influences
    return influences == {"version"} if effect is Effect.NEXT_VERSION else "tables" in influences


def test_a_change_of_each_key_has_the_effect_that_its_row_names(world: Trained) -> None:
    observed = {key: influence(world.spec, other(world.spec, key)) for key in OTHER}
    assert not {k: (CHANGES[k].effect, v) for k, v in observed.items() if not has_effect(k, v)}


def test_a_key_that_differs_is_named_with_both_values(world: Trained) -> None:
    before = world.spec.bundle()
    assert changed_keys(before, other(world.spec, "alerts.mute").bundle()) == {}, "they are of no version"
    assert changed_keys(before, other(world.spec, "label.expression").bundle()) == {
        "label.expression": ("y", "y + 1")
    }
    table = {"table": {"name": "t"}, "sql": "SELECT 1", "sources": []}
    with_sets = {**before, "sets": [{"set": {"name": "s"}, "sql": "SELECT 1"}], "tables": [table]}
    other_sql = {
        **with_sets,
        "sets": [{"set": {"name": "s"}, "sql": "SELECT 2"}],
        "tables": [table | {"sql": ""}],
    }
    assert [*changed_keys(with_sets, other_sql)] == ["sets", "tables"]


def test_every_row_is_tried() -> None:
    assert set(CHANGES) - set(OTHER) == {"name", "feature_set.yaml", "feature_table.yaml", "training.engine"}


def test_a_key_that_does_not_influence_results_changes_nothing(world: Trained) -> None:
    score(world.spec, start=WEEK, end=toys.LAST)
    present = changed(
        world.spec,
        owner="others",
        description="Another.",
        tags=["new"],
        compute={"train": "gpu"},
        limits={"train": {"retries": 0}},
        alerts={"mute": [{"signals": ["*"], "until": "2024-03-01", "reason": "a strike"}]},
        schedule={"start": "2023-12-01", "data": "0 3 * * *"},
        data={"arrival": "wait", "arrival_hours": 2.0},
        gate={"external_change": "restore"},
    )
    assert score(present, start=WEEK, end=toys.LAST)["status"] == "unchanged"
    assert train(present, as_of=toys.LAST)["status"] == "unchanged"
    assert CHANGES["compute"].effect is CHANGES["schedule.start"].effect is Effect.NEXT_RUN


def test_a_champion_is_monitored_by_the_metric_of_its_training_and_compared_by_the_new_one(
    world: Trained,
) -> None:
    score(world.spec, start=WEEK, end=toys.LAST)
    before = monitor(world.spec, as_of=toys.LAST)
    present = changed(
        world.spec, gate={"metric": "brier", "margin": 0.5}, monitoring={"slices": ["k"], "psi_threshold": 9}
    )
    after = monitor(present, as_of=toys.LAST)
    assert after["performance"] == before["performance"]
    assert after["performance"]["metric"] == "log_loss"
    shared = {name: signal for name, signal in after["signals"].items() if name != "slices"}
    assert {n: s["state"] for n, s in shared.items()} == {n: s["state"] for n, s in before["signals"].items()}
    slices = after["signals"]["slices"]
    assert (slices["state"], "not in the spec yet" in slices["reason"]) == ("undetermined", True)
    result = train(present, as_of=toys.LAST)
    assert any("brier" in reason and "champion" in reason for reason in result["gate"]["reasons"])
    assert result["gate"]["against_champion"] is not None


def test_a_new_column_is_null_in_earlier_partitions_in_training_too(world: Trained) -> None:
    sql = world.spec.sql.replace("x, z, k,", "x, z, k, coalesce(more, -1) AS more, more AS extra,")
    columns = world.spec.data.columns | {"more": "integer"}
    present = changed(world.spec, sql, data={"columns": columns}, monitoring={"slices": ["more"]})
    assert preflight.check_model(present).problems == []
    result = train(present, as_of=toys.LAST)
    assert result["gate"]["against_champion"] is not None
    version = registry.get_version(present.name, result["version"])
    bins = registry.load_json_artifact(version, "reference.json")
    assert "more" in str(bins) and "extra" in str(bins)
    assert score(present, start=WEEK, end=toys.LAST)["rows_out"] == 7 * toys.ROWS
    assert monitor(present, as_of=toys.LAST)["verdict"] == "ok"
    toys.land(present, NEXT, 1)
    uri = present.data.source.replace("{landing}", str(world.home / "landing")).replace("{date}", NEXT)
    rows = toys.rows("binary", NEXT)
    toys.write(uri, rows.append_column("more", pa.array(range(toys.ROWS))))
    data(present, start=NEXT)
    published = lake.read_table(delta_tables.table_uri("published", present.name))
    assert published["more"].null_count == toys.DAYS * toys.ROWS
    assert sorted(v for v in published["more"].to_pylist() if v is not None) == list(range(toys.ROWS))
    following = changed(present, gate={"external_change": "follow"})
    try:
        registry.set_alias(present.name, result["version"], "champion")
        scored = score(following, start=NEXT)
    finally:  # other tests have this champion, too
        registry.set_alias(present.name, world.result["version"], "champion")
    assert (scored["model_version"], scored["rows_out"]) == (result["version"], toys.ROWS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"columns": {"z": "string"}}}, "published: column 'z' is number in the table and string in the spec"),
        ({"data": {"key": ["id", "k"]}}, "labels: key was ['id'] and is ['id', 'k']"),
        ({"task": "regression"}, "labels: task was 'binary' and is 'regression'"),
        ({"label": {"expression": "y + 1"}}, "labels: label.expression was 'y' and is 'y + 1'"),
    ],
    ids=["data.columns", "data.key", "task", "label.expression"],
)  # fmt: skip
def test_what_the_tables_do_not_fit_is_refused_by_each_step(
    world: Trained, changes: dict[str, Any], message: str
) -> None:
    """Nothing is read as what it is not: before the new generation, and before its partitions are published."""
    score(world.spec, start=toys.LAST)
    if columns := changes.get("data", {}).get("columns"):
        changes = {"data": {"columns": world.spec.data.columns | columns}}
    if "key" in changes.get("data", {}):
        changes = {**changes, "label": {"columns": world.spec.label.columns | {"k": "string"}}}
    present = changed(world.spec, **changes)
    toys.land(world.spec, NEXT, 1)
    for step in (
        lambda: data(present, start=NEXT),
        lambda: train(present, as_of=toys.LAST),
    ):
        with pytest.raises(SpecError) as caught:
            step()
        assert message in str(caught.value) and "new-generation" in str(caught.value)
    assert any(message in problem for problem in preflight.check_model(present).problems)
    result = monitor(present, as_of=toys.LAST)
    assert result["verdict"] == "undetermined"
    assert set(result["signals"]) <= {"backlog", "champion"}  # which say nothing of its predictions
    assert message in result["reason"]
    decision = decide(present, as_of=toys.LAST, actor="test", backfill=False)
    assert (decision["retrain"], "undetermined" in decision["reason"]) == (False, True)
    begin_generation(present)
    with pytest.raises(DataError, match=r"too few|nothing was published|no label"):
        train(present, as_of=toys.LAST)
    result = monitor(present, as_of=toys.LAST)
    assert result["verdict"] == "undetermined"
    assert "cannot be monitored" in result["reason"]


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_a_champion_of_another_task_is_not_compared_and_does_not_score(
    make_model: Callable[..., ModelSpec], task: str
) -> None:
    spec = make_model()
    toys.publish(spec)
    first = train(spec, as_of=toys.LAST)
    promote(spec, as_of=toys.LAST, actor="test")
    score(spec, start=WEEK, end=toys.LAST)
    column = {"y": toys.LABEL_TYPES[task]}
    present = changed(
        spec,
        task=task,
        label={"columns": spec.label.columns | column},
        gate={"beat_baseline": False},
        retraining={"trial": "5 days"},
    )
    begin_generation(present)
    toys.publish(present)
    difference = f"it was trained for task binary, the spec has task {task}"
    with pytest.raises(DataError, match=difference):
        score(present, start=toys.LAST)
    result = monitor(present, as_of=toys.LAST)
    assert (result["verdict"], result["performance"]["verdict"]) == ("undetermined", "undetermined")
    assert difference in result["reason"]
    assert not decide(present, as_of=toys.LAST, actor="test", backfill=False)["retrain"]
    second = train(present, as_of=toys.LAST)
    gate = second["gate"]
    assert (gate["passed"], gate["against_champion"]) == (True, None)
    assert difference in gate["not_compared"]
    assert any("not compared with the champion, only with the baselines" in r for r in gate["reasons"])
    assert any("constant" in r for r in gate["reasons"])  # though beat_baseline is false
    with pytest.raises(DataError, match=difference):  # the earlier challenger has another manifest by now
        score(present, start=toys.LAST)
    assert promote(present, as_of=toys.LAST, actor="test")[
        "promoted"
    ]  # a trial could not compare them either
    assert "not compared" in ledger.records(spec.name, ledger.LedgerKind.PROMOTION)[-1]["reason"]
    assert score(present, start=WEEK, end=toys.LAST)["rows_out"] == 7 * toys.ROWS
    assert monitor(present, as_of=toys.LAST)["performance"]["metric"] == present.metric
    with pytest.raises(RegistryError, match="it was trained for task binary"):
        rollback(present, actor="test", reason="back", to_version=first["version"])


def test_a_challenger_from_before_the_change_is_not_promoted(make_model: Callable[..., ModelSpec]) -> None:
    spec = make_model()
    toys.publish(spec)
    train(spec, as_of=toys.LAST)
    result = promote(changed(spec, label={"expression": "1 - y"}), as_of=toys.LAST, actor="test")
    assert not result["promoted"]
    assert "it was trained with another label.expression; train again" in result["reason"]
    renamed = changed(spec, name=toys.unique())
    with pytest.raises(DataError, match="there is no finished training"):
        promote(renamed, as_of=toys.LAST, actor="test")
    with pytest.raises(DataError, match="there is no verdict"):
        decide(renamed, as_of=toys.LAST, actor="test", backfill=False)


def test_a_wider_label_is_converted_and_the_champion_stays_comparable(world: Trained) -> None:
    present = changed(world.spec, label={"columns": world.spec.label.columns | {"y": "number"}})
    toys.land(world.spec, toys.LAST, 2)
    labels = delta_tables.table_uri("labels", world.spec.name)
    before = lake.read_table(labels, end=dates.add_days(toys.LAST, -1))["label"]
    data(present, start=NEXT)
    after = lake.read_table(labels, end=dates.add_days(toys.LAST, -1))["label"]
    assert (after.type, sorted(after.to_pylist())) == (pa.float64(), sorted(before.to_pylist()))
    assert train(present, as_of=toys.LAST)["gate"]["against_champion"] is not None


def test_another_reference_table_is_read_by_the_next_version_only(world: Trained) -> None:
    champion = score(world.spec, start=toys.LAST)
    predictions = toys.content_of("predictions", world.spec.name)
    references = [{"name": "sites", "source": "{landing}/sites.parquet"}]
    sql = world.spec.sql.replace("places", "sites")
    present = changed(world.spec, sql, features={"references": references, "unseen": "stop"})
    toys.write(str(world.home / "landing" / "sites.parquet"), toys.places())
    assert score(present, start=toys.LAST, force=True)["model_version"] == champion["model_version"]
    assert toys.content_of("predictions", world.spec.name) == predictions
    assert train(present, as_of=toys.LAST)["dataset_version"]["references"].keys() == {"sites"}


def test_what_makes_a_version_comparable(make_model: Callable[..., ModelSpec]) -> None:
    spec = make_model("ranking")
    columns = spec.data.columns
    assert target_difference(spec, changed(spec, group="id", gate={"margin": 0.1})) == ""
    assert as_trained(spec, changed(spec, group="id")).group == "list"
    # integer became number: the version is read integers
    assert target_difference(spec, changed(spec, data={"columns": columns | {"list": "number"}})) == ""
    # Its SQL does not name the column.
    unused = changed(spec, data={"columns": columns | {"other": "integer"}})
    assert target_difference(unused, changed(spec, data={"columns": columns | {"other": "string"}})) == ""
    assert "column 'k'" in target_difference(
        spec, changed(spec, data={"columns": columns | {"k": "integer"}})
    )
    classes = make_model("multiclass")
    more = changed(classes, label={"columns": classes.label.columns | {"source": "string"}})
    assert target_difference(classes, more) == "" and target_difference(more, classes) == ""
    numbers = changed(classes, label={"columns": {"id": "string", "y": "integer"}})
    assert "label column 'y' had type string" in target_difference(classes, numbers)
