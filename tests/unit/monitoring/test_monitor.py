"""The step `monitor`, from tables in the lake to its verdict, table, report and manifest."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perennial.core import dates
from perennial.core.errors import ArtifactError, PerennialError, RegistryError
from perennial.core.settings import settings
from perennial.modeling import registry
from perennial.monitoring import results
from perennial.monitoring.pictures import feature_histograms, signal_charts
from perennial.steps.monitor import monitor
from perennial.storage import delta_tables, duckdb_session, manifests
from support.monitored import FIRST, ROWS, TRUTH, World

pytestmark = pytest.mark.usefixtures("without_drift_report")

Make = Callable[..., World]
LATER = "2024-01-22"


def table(monitored: World) -> list[dict[str, Any]]:
    con = duckdb_session.connect()
    duckdb_session.create_view(con, "m", delta_tables.table_uri("monitoring", monitored.spec.name))
    return con.sql("SELECT * FROM m ORDER BY ALL").to_arrow_table().to_pylist()


@pytest.mark.drift_report
def test_a_calm_week_is_ok(monitored: World) -> None:
    monitored.publish(LATER, 7)
    monitored.predict(LATER, 7, value="0.2 + 0.6 * (hash(i) % 1000) / 1000")
    monitored.label(LATER, 7)
    result = monitor(monitored.spec, as_of="2024-01-28")
    assert (result["verdict"], result["drift_share"], result["evaluated_share"]) == ("ok", 0.0, 1.0)
    assert result["model_version"] == "1" and result["champion_as_of"] == "2024-01-21"
    assert result["performance"]["scored_rows"] == 7 * ROWS
    rows = table(monitored)
    assert {r["role"] for r in rows} == {"verdict", "performance", "signal", "feature", "prediction"}
    assert {r["column"] for r in rows if r["role"] == "feature"} == {"x", "k", "who"}
    assert Path(result["report"]).read_text().count("<body>") == 1
    content = json.loads(Path(result["report"].replace(".html", ".json")).read_text())
    assert content["result"]["verdict"] == "ok" and content["evidently"]["metrics"]
    histograms = json.loads(Path(feature_histograms.uri("toy", result["as_of"])).read_text())
    columns = {c["column"]: c for c in histograms["columns"]}
    assert sum(columns["x"]["current"]) == columns["x"]["rows"] and columns["x"]["bins"][-1] == "no value"
    assert columns["who"]["bins"] == ["with a value", "no value"], "personal data"


def test_the_report_begins_with_pictures_of_this_window_and_those_before(monitored: World) -> None:
    monitored.publish(LATER, 8)
    monitored.predict(LATER, 8, value="0.2 + 0.6 * (hash(i) % 1000) / 1000")
    monitored.label(LATER, 8)
    first, second = (monitor(monitored.spec, as_of=day) for day in ("2024-01-28", "2024-01-29"))
    history = results.window_history(monitored.spec, "2024-01-29", 60)
    assert history == [results.WindowRecord.of_result(first)]
    assert results.window_history(monitored.spec, "2024-01-30", 1) == [results.WindowRecord.of_result(second)]
    page = Path(second["report"]).read_text()
    assert page.index("<svg") < page.index("Signals over time") < page.index("<h2>Signals</h2>")
    for title in ("Performance: log loss of the labelled rows", "Drift: share", "ROC curve", "Calibration"):
        assert title in page[: page.index("<h2>Signals</h2>")]
    assert '<th scope="row">2024-01-28</th>' in page


def test_pictures_that_cannot_be_drawn_leave_the_tables(
    monitored: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monitored.publish(LATER, 7)
    monkeypatch.setattr(signal_charts, "signal_charts", lambda *_: 1 / 0)
    page = Path(monitor(monitored.spec, as_of="2024-01-28")["report"]).read_text()
    assert "<h2>Signals</h2>" in page and "<svg" not in page
    assert "the charts of toy, 7 days to 2024-01-28 could not be drawn" in caplog.text


def test_drift_is_suspected_until_it_persists(monitored: World) -> None:
    monitored.publish(LATER, 4)
    monitored.publish("2024-01-26", 4, shift=0.9)
    verdicts = {day: monitor(monitored.spec, as_of=day) for day in dates.dates("2024-01-26", "2024-01-29")}
    first = min(day for day, result in verdicts.items() if result["suspicious"])
    assert verdicts[first]["verdict"] == "suspected"
    result = verdicts[dates.add_days(first, 1)]
    assert result["verdict"] == "drifted" and result["drifted"] == ["x"]
    assert result["drift_share"] == pytest.approx(0.7)


def test_verdicts_do_not_depend_on_the_order_in_which_a_backfill_computes_them(
    monitored: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on which of them are stored, nor on verdicts about another champion."""
    monitored.publish(LATER, 4)
    monitored.publish("2024-01-26", 6, shift=0.9)
    monitored.predict(LATER, 10)
    days = dates.dates("2024-01-20", "2024-01-31")
    shutil.copytree(settings().lake, monitored.folder / "other")

    def evaluate(order: list[str]) -> dict[str, Any]:
        found = {}
        for day in order:
            monitor(monitored.spec, as_of=day)
        for day in days:
            manifest = manifests.read(monitored.spec.name, "monitor", day)
            assert manifest is not None
            result = {k: v for k, v in manifest.result.items() if k != "report"}
            found[day] = (manifest.inputs, result)
        return found

    in_order = evaluate(days)
    verdicts = {result["verdict"] for _, result in in_order.values()}
    assert {"suspected", "drifted"} <= verdicts
    monkeypatch.setenv("PERENNIAL_LAKE", str(monitored.folder / "other"))
    shuffled = random.Random(3).sample(days, len(days))
    assert evaluate(shuffled) == in_order


@pytest.mark.parametrize(
    ("kind", "last_year", "before", "suspicious"),
    [("training", 0.5, 0.5, True), ("last_year", 0.5, 0.0, False), ("last_year", 0.0, 0.5, True),
     ("rolling", 0.0, 0.5, False), ("rolling", 0.5, 0.0, True)],
)  # fmt: skip
def test_the_window_is_compared_with_the_reference_of_the_policy(
    make_world: Make, kind: str, last_year: float, before: float, suspicious: bool
) -> None:
    monitored = make_world(monitoring={"window": "7 days", "min_rows": 100, "reference": kind})
    monitored.publish("2024-01-01", 21)
    monitored.train()
    monitored.publish("2023-01-30", 7, shift=last_year)
    monitored.publish("2024-01-22", 7, shift=before)
    monitored.publish("2024-01-29", 7, shift=0.5)
    assert monitor(monitored.spec, as_of="2024-02-04")["suspicious"] is suspicious


def test_nothing_to_compare_with_is_undetermined(make_world: Make) -> None:
    monitored = make_world(monitoring={"window": "7 days", "min_rows": 100, "reference": "last_year"})
    monitored.publish("2024-01-01", 28)
    monitored.train()
    result = monitor(monitored.spec, as_of="2024-01-28")
    assert result["verdict"] == "undetermined" and "0 rows to compare with" in result["reason"]


def test_only_windows_since_the_training_of_the_champion_count(monitored: World) -> None:
    monitored.publish(LATER, 14, shift=0.9)
    assert monitor(monitored.spec, as_of="2024-01-27")["verdict"] == "drifted"
    monitored.train(version="2", days=26)
    assert monitor(monitored.spec, as_of="2024-01-27")["verdict"] == "suspected"
    assert monitor(monitored.spec, as_of="2024-01-28")["verdict"] == "drifted"


def test_only_scheduled_windows_count(make_world: Make) -> None:
    monitored = make_world(schedule={"monitor": "0 6 * * 1"})  # for Sunday's partition
    monitored.publish("2024-01-01", 21)
    monitored.train()
    monitored.publish(LATER, 14, shift=0.9)
    assert monitor(monitored.spec, as_of="2024-01-27")["verdict"] == "suspected"
    assert monitor(monitored.spec, as_of="2024-01-28")["verdict"] == "suspected"
    assert monitor(monitored.spec, as_of="2024-02-04")["verdict"] == "drifted"


def test_a_column_of_low_importance_alone_is_no_drift(make_world: Make) -> None:
    monitored = make_world(monitoring={"window": "7 days", "min_rows": 100, "drift_share": 0.5})
    monitored.publish("2024-01-01", 21)
    monitored.train()
    monitored.publish(LATER, 7, k="'z' || (i % 3)")
    result = monitor(monitored.spec, as_of="2024-01-28")
    assert (
        result["verdict"] == "ok"
        and result["drifted"] == ["k"]
        and result["drift_share"] == pytest.approx(0.3)
    )


def test_a_jump_in_nulls_is_drift(monitored: World) -> None:
    monitored.publish(LATER, 7, x="CASE WHEN i % 5 > 0 THEN (hash(i) % 1000) / 1000.0 END")
    result = monitor(monitored.spec, as_of="2024-01-28")
    assert result["suspicious"] is True and result["drifted"] == ["x"]
    assert next(r for r in table(monitored) if r["column"] == "x")["reason"].startswith(
        "rows without a value went from 0.0%"
    )


@pytest.mark.drift_report
@pytest.mark.parametrize("value", ["NULL::DOUBLE", "3.0::DOUBLE", "'inf'::DOUBLE", "'nan'::DOUBLE", "-1e308"])
def test_no_values_of_a_column_break_the_verdict_or_the_report(monitored: World, value: str) -> None:
    monitored.publish(LATER, 7, x=value)
    result = monitor(monitored.spec, as_of="2024-01-28")
    assert result["verdict"] == "drifted" and Path(result["report"]).is_file()


@pytest.mark.drift_report
def test_hostile_values_are_escaped(monitored: World) -> None:
    hostile = "WHEN 0 THEN '</script><script>alert(1)</script>' WHEN 1 THEN '=cmd()' WHEN 2 THEN repeat('x', 100000)"
    monitored.publish(LATER, 7, k=f"CASE i % 4 {hostile} END")
    result = monitor(monitored.spec, as_of="2024-01-28")
    assert result["drifted"] == ["k"]
    assert "<script>alert" not in Path(result["report"]).read_text()


def test_without_a_champion_the_verdict_is_undetermined(make_world: Make) -> None:
    monitored = make_world()
    result = monitor(monitored.spec, as_of="2024-01-28")
    assert result["verdict"] == "undetermined" and "no champion" in result["reason"]
    assert Path(result["report"]).is_file() and manifests.read("toy", "monitor", "2024-01-28")
    assert "backlog" not in result["signals"], "what was published before the model existed opens no incident"


def test_an_empty_window_is_undetermined(monitored: World) -> None:
    result = monitor(monitored.spec, as_of="2025-06-01")
    assert result["verdict"] == "undetermined" and "0 rows" in result["reason"]
    assert result["performance"]["verdict"] == "undetermined"


def test_a_window_of_too_few_rows_is_undetermined(make_world: Make) -> None:
    monitored = make_world(monitoring={"window": "7 days", "min_rows": 300})
    monitored.publish("2024-01-01", 21)
    monitored.train()
    monitored.publish(LATER, 1, shift=0.5)
    assert monitor(monitored.spec, as_of="2024-01-28")["verdict"] == "undetermined"


def test_a_missing_feature_cannot_be_evaluated(monitored: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monitored.publish(LATER, 7)
    trained = monitored.spec.model_copy()
    trained._sql = "SELECT id, x, k AS renamed, who FROM rows"
    changed = trained.model_copy(
        update={"features": trained.features.model_copy(update={"categorical": ["renamed", "who"]})}
    )
    monkeypatch.setattr(registry, "load_spec", lambda version: changed)
    result = monitor(monitored.spec, as_of="2024-01-28")
    assert result["suspicious"] is False and result["evaluated_share"] == pytest.approx(0.7)
    assert result["verdict"] == "undetermined" and "nothing says how well the model does" in result["reason"]


def test_a_rise_of_the_loss_is_certain_after_some_partitions_and_not_after_one(monitored: World) -> None:
    monitored.publish(LATER, 7)
    monitored.label(LATER, 4, TRUTH)
    for n in range(3):  # the labels are turned around
        monitored.label(dates.add_days(LATER, 4 + n), 1, f"1 - {TRUTH}")
    signals = [
        monitor(monitored.spec, as_of=dates.add_days(LATER, n))["signals"]["performance"] for n in (4, 5, 7)
    ]
    assert [s["state"] for s in signals] == ["ok", "suspected", "bad"]
    assert signals[-1]["since"] == dates.add_days(LATER, 4)
    result = monitor(monitored.spec, as_of=dates.add_days(LATER, 7))
    assert result["performance"]["verdict"] == "dropped" and result["performance"]["degraded"] is True


def test_a_second_run_is_a_no_op_and_new_data_is_not(monitored: World) -> None:
    monitored.publish(LATER, 7)
    first = monitor(monitored.spec, as_of="2024-01-28")
    version = delta_tables.version(delta_tables.table_uri("monitoring", "toy"))
    assert monitor(monitored.spec, as_of="2024-01-28")["status"] == "unchanged"
    assert delta_tables.version(delta_tables.table_uri("monitoring", "toy")) == version
    monitored.publish("2024-01-28", 1, shift=9)
    again = monitor(monitored.spec, as_of="2024-01-28")
    assert again["status"] == "monitored" and first["status"] == "monitored"
    monitored.publish("2024-01-29", 1)  # outside the window
    assert monitor(monitored.spec, as_of="2024-01-28")["status"] == "unchanged"


def test_a_forced_rerun_gives_the_same_content(monitored: World) -> None:
    monitored.publish(LATER, 7, shift=0.3)
    first = monitor(monitored.spec, as_of="2024-01-28")
    rows = table(monitored)
    assert monitor(monitored.spec, as_of="2024-01-28", force=True) == first
    assert table(monitored) == rows


def test_a_run_killed_before_its_manifest_is_repeated(
    monitored: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitored.publish(LATER, 7)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(manifests, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            monitor(monitored.spec, as_of="2024-01-28")
    assert manifests.read("toy", "monitor", "2024-01-28") is None
    assert monitor(monitored.spec, as_of="2024-01-28")["status"] == "monitored"
    assert sum(r["role"] != "signal" for r in table(monitored)) == 6


@pytest.mark.drift_report
def test_personal_values_appear_nowhere(monitored: World) -> None:
    monitored.publish(LATER, 7, shift=0.5)
    monitor(monitored.spec, as_of="2024-01-28")
    for path in [
        *Path(settings().lake, "reports").rglob("*.*"),
        *Path(settings().lake, "manifests").rglob("*.json"),
    ]:
        assert "person 1" not in path.read_text(), path
    for path in (monitored.folder / "artifacts").rglob("*.json"):
        assert "person 1" not in path.read_text(), path
    assert "person" not in str(table(monitored))


@pytest.mark.parametrize("name", ["reference.json", "importance.json", "evaluation.json"])
def test_a_damaged_artifact_is_an_error_with_a_remedy(monitored: World, name: str) -> None:
    monitored.publish(LATER, 7)
    path = monitored.folder / "artifacts" / "run-1" / name
    path.write_text(path.read_text()[:-5])
    with pytest.raises(ArtifactError, match="train"):
        monitor(monitored.spec, as_of="2024-01-28")
    assert manifests.read("toy", "monitor", "2024-01-28") is None


@pytest.mark.drift_report
def test_the_verdict_does_not_need_the_reference_sample(monitored: World) -> None:
    monitored.publish(LATER, 7)
    (monitored.folder / "artifacts" / "run-1" / "reference.parquet").write_bytes(b"")
    result = monitor(monitored.spec, as_of="2024-01-28")
    assert result["verdict"] == "ok" and "Columns without a plot" in Path(result["report"]).read_text()


def test_mlflow_down_is_an_error(monitored: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(spec: object) -> None:
        raise RegistryError("MLflow does not answer", "start it")

    monkeypatch.setattr(registry, "get_champion", down)
    with pytest.raises(RegistryError):
        monitor(monitored.spec, as_of="2024-01-28")


@pytest.mark.parametrize("as_of", ["", "2024-1-1", "yesterday", "2024-01-28; DROP", "../../etc"])
def test_anything_but_a_date_is_an_error(monitored: World, as_of: str) -> None:
    with pytest.raises(PerennialError, match="not a date"):
        monitor(monitored.spec, as_of=as_of)


def test_a_window_may_start_before_the_first_partition(monitored: World) -> None:
    result = monitor(monitored.spec, as_of="2024-01-03")
    assert (result["start"], result["as_of"]) == ("2023-12-28", "2024-01-03")
    assert (result["suspicious"], result["drift_share"], result["drifted"]) == (False, 0.0, [])
    assert {row["rows"] for row in table(monitored) if row["role"] == "feature"} == {3 * ROWS}


@pytest.mark.drift_report
@pytest.mark.parametrize("x", ["NULL", "[1e308, -1e308, 5e-324, NULL][1 + i % 4]"])
def test_the_verdict_does_not_depend_on_its_report(monitored: World, x: str) -> None:
    """Values that Evidently cannot plot, and then a report that cannot be stored."""
    monitored.publish(LATER, 7, x=f"({x})::DOUBLE", k="repeat(chr((1 + i % 2)::INTEGER) || '</script>', 500)")
    result = monitor(monitored.spec, as_of="2024-01-28")
    assert result["verdict"] == "drifted"
    page = Path(result["report"]).read_text("utf-8")
    assert "7 days to 2024-01-28" in page and "could not be drawn" not in page
    Path(result["report"]).unlink()
    (Path(result["report"]) / "in the way").mkdir(parents=True)
    again = monitor(monitored.spec, as_of="2024-01-28", force=True)
    manifest = manifests.read("toy", "monitor", "2024-01-28")
    assert manifest is not None and manifest.result["verdict"] == again["verdict"] == "drifted"


def test_without_a_partition_of_late_the_verdict_is_undetermined(monitored: World) -> None:
    monitored.publish(LATER, 5)  # the last two days of the window did not land
    result = monitor(monitored.spec, as_of="2024-01-28")
    assert result["suspicious"] is False and result["signals"]["freshness"]["state"] == "bad"
    assert result["verdict"] == "undetermined"
    assert result["reason"].startswith("freshness is bad: no rows for 2024-01-27, 2024-01-28")


def test_a_champion_with_one_held_out_day_is_never_called_ok(
    make_world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("support.monitored.HOLDOUT_DAYS", 1)
    world = make_world()
    world.publish(FIRST, 21)
    world.label(FIRST, 21, TRUTH)
    world.train()
    world.publish(LATER, 7)
    world.label(LATER, 7, TRUTH)
    result = monitor(world.spec, as_of="2024-01-28")
    states = {name: signal["state"] for name, signal in result["signals"].items()}
    for name in ("performance", "calibration", "gain", "estimated", "attributions"):
        assert states[name] == "undetermined"
    assert result["suspicious"] is False and states["freshness"] == "ok"
    assert result["verdict"] == "undetermined"
    assert "performance, calibration, gain, estimated, attributions are undetermined" in result["reason"]
    assert "training.holdout of 5 partitions or more" in result["reason"]


@pytest.mark.parametrize("value", ["2", "-1"])
def test_one_impossible_label_in_the_lake_makes_labels_bad_and_performance_undetermined(
    monitored: World, value: str
) -> None:
    monitored.publish(LATER, 7)
    monitored.predict(LATER, 7)
    monitored.label(LATER, 7, f"CASE WHEN i = 7 AND getvariable($$salt$$) = 3 THEN {value} ELSE {TRUTH} END")
    result = monitor(monitored.spec, as_of="2024-01-28")
    states = {name: signal["state"] for name, signal in result["signals"].items()}
    assert states["labels"] == "bad"
    assert result["signals"]["labels"]["reason"].startswith("1 of 4,000 sampled labels cannot be")
    assert result["signals"]["labels"]["since"] == dates.add_days(LATER, 3)
    for name in ("performance", "calibration", "gain"):
        assert states[name] == "undetermined"
    assert states["estimated"] == "ok" and result["performance"]["verdict"] == "undetermined"
    assert "1 of 1,200 labels are not 0 or 1" in result["performance"]["reason"]
    assert "1,200" in Path(result["report"]).read_text()
