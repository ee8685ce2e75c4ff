"""The step `monitor`, from tables in the lake to its verdict, table, report and manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perennial.core import dates
from perennial.core.errors import ArtifactError, PerennialError, RegistryError
from perennial.core.settings import settings
from perennial.modeling import registry
from perennial.steps.monitor import monitor
from perennial.storage import delta_tables, duckdb_session, manifests
from support.monitored import ROWS, TRUTH, World

Make = Callable[..., World]
LATER = "2024-01-22"


def table(monitored: World) -> list[dict[str, Any]]:
    con = duckdb_session.connect()
    duckdb_session.create_view(con, "m", delta_tables.table_uri("monitoring", monitored.spec.name))
    return con.sql("SELECT * FROM m ORDER BY ALL").to_arrow_table().to_pylist()


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


def test_drift_is_suspected_until_it_persists(monitored: World) -> None:
    monitored.publish(LATER, 14, shift=0.5)
    assert monitor(monitored.spec, as_of="2024-01-27")["verdict"] == "suspected"
    result = monitor(monitored.spec, as_of="2024-01-28")
    assert result["verdict"] == "drifted" and result["drifted"] == ["x"]
    assert result["drift_share"] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("kind", "last_year", "before", "verdict"),
    [("training", 0.5, 0.5, "suspected"), ("last_year", 0.5, 0.0, "ok"), ("last_year", 0.0, 0.5, "suspected"),
     ("rolling", 0.0, 0.5, "ok"), ("rolling", 0.5, 0.0, "suspected")],
)  # fmt: skip
def test_the_window_is_compared_with_the_reference_of_the_policy(
    make_world: Make, kind: str, last_year: float, before: float, verdict: str
) -> None:
    monitored = make_world(monitoring={"window_days": 7, "min_rows": 100, "reference": kind})
    monitored.publish("2024-01-01", 21)
    monitored.train()
    monitored.publish("2023-01-30", 7, shift=last_year)
    monitored.publish("2024-01-22", 7, shift=before)
    monitored.publish("2024-01-29", 7, shift=0.5)
    assert monitor(monitored.spec, as_of="2024-02-04")["verdict"] == verdict


def test_nothing_to_compare_with_is_undetermined(make_world: Make) -> None:
    monitored = make_world(monitoring={"window_days": 7, "min_rows": 100, "reference": "last_year"})
    monitored.publish("2024-01-01", 28)
    monitored.train()
    result = monitor(monitored.spec, as_of="2024-01-28")
    assert result["verdict"] == "undetermined" and "0 rows to compare with" in result["reason"]


def test_only_verdicts_on_the_same_champion_count(monitored: World) -> None:
    monitored.publish(LATER, 14, shift=0.5)
    assert monitor(monitored.spec, as_of="2024-01-27")["verdict"] == "suspected"
    monitored.train(version="2")
    assert monitor(monitored.spec, as_of="2024-01-28")["verdict"] == "suspected"
    assert monitor(monitored.spec, as_of="2024-01-29")["verdict"] == "drifted"


def test_later_verdicts_do_not_count_for_an_earlier_date(monitored: World) -> None:
    monitored.publish(LATER, 14, shift=0.5)
    assert monitor(monitored.spec, as_of="2024-01-30")["verdict"] == "suspected"
    assert monitor(monitored.spec, as_of="2024-01-28")["verdict"] == "suspected"


def test_a_column_of_low_importance_alone_is_no_drift(make_world: Make) -> None:
    monitored = make_world(monitoring={"window_days": 7, "min_rows": 100, "drift_share": 0.5})
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
    assert result["verdict"] == "suspected" and result["drifted"] == ["x"]
    assert next(r for r in table(monitored) if r["column"] == "x")["reason"].startswith(
        "rows without a value went from 0.0%"
    )


@pytest.mark.parametrize("value", ["NULL::DOUBLE", "3.0", "'inf'::DOUBLE", "'nan'::DOUBLE", "-1e308"])
def test_no_values_of_a_column_break_the_verdict_or_the_report(monitored: World, value: str) -> None:
    monitored.publish(LATER, 7, x=value)
    result = monitor(monitored.spec, as_of="2024-01-28")
    assert result["verdict"] == "suspected" and Path(result["report"]).is_file()


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


def test_an_empty_window_is_undetermined(monitored: World) -> None:
    result = monitor(monitored.spec, as_of="2025-06-01")
    assert result["verdict"] == "undetermined" and "0 rows" in result["reason"]
    assert result["performance"]["verdict"] == "undetermined"


def test_a_window_of_too_few_rows_is_undetermined(make_world: Make) -> None:
    monitored = make_world(monitoring={"window_days": 7, "min_rows": 300})
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
    assert result["verdict"] == "ok" and result["evaluated_share"] == pytest.approx(0.7)


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
    assert monitor(monitored.spec, as_of="2024-01-03")["verdict"] in ("ok", "suspected")
    assert dates.add_days("2024-01-03", -6) == "2023-12-28"
