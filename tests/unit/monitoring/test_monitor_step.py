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


def table(world: World) -> list[dict[str, Any]]:
    con = duckdb_session.connect()
    duckdb_session.create_view(con, "m", delta_tables.table_uri("monitoring", world.spec.name))
    return con.sql("SELECT * FROM m ORDER BY ALL").to_arrow_table().to_pylist()


def test_a_calm_week_is_ok(world: World) -> None:
    world.publish(LATER, 7)
    world.predict(LATER, 7, value="0.2 + 0.6 * (hash(i) % 1000) / 1000")
    world.label(LATER, 7)
    found = monitor(world.spec, as_of="2024-01-28")
    assert (found["verdict"], found["drift_share"], found["judged_share"]) == ("ok", 0.0, 1.0)
    assert found["model_version"] == "1" and found["champion_as_of"] == "2024-01-21"
    assert found["performance"]["scored"] == 7 * ROWS
    rows = table(world)
    assert {r["role"] for r in rows} == {"verdict", "performance", "signal", "feature", "prediction"}
    assert {r["column"] for r in rows if r["role"] == "feature"} == {"x", "k", "who"}
    assert Path(found["report"]).read_text().count("<body>") == 1
    kept = json.loads(Path(found["report"].replace(".html", ".json")).read_text())
    assert kept["result"]["verdict"] == "ok" and kept["evidently"]["metrics"]


def test_drift_is_suspected_first_and_drift_when_it_persists(world: World) -> None:
    world.publish(LATER, 14, shift=0.5)
    assert monitor(world.spec, as_of="2024-01-27")["verdict"] == "suspected"
    found = monitor(world.spec, as_of="2024-01-28")
    assert found["verdict"] == "drifted" and found["drifted"] == ["x"]
    assert found["drift_share"] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("kind", "last_year", "before", "tier"),
    [("training", 0.5, 0.5, "suspected"), ("last_year", 0.5, 0.0, "ok"), ("last_year", 0.0, 0.5, "suspected"),
     ("rolling", 0.0, 0.5, "ok"), ("rolling", 0.5, 0.0, "suspected")],
)  # fmt: skip
def test_the_season_is_compared_with_what_the_policy_says(
    make_world: Make, kind: str, last_year: float, before: float, tier: str
) -> None:
    world = make_world(monitoring={"window_days": 7, "min_rows": 100, "reference": kind})
    world.publish("2024-01-01", 21)
    world.train()
    world.publish("2023-01-30", 7, shift=last_year)
    world.publish("2024-01-22", 7, shift=before)
    world.publish("2024-01-29", 7, shift=0.5)
    assert monitor(world.spec, as_of="2024-02-04")["verdict"] == tier


def test_nothing_to_compare_with_is_undetermined(make_world: Make) -> None:
    world = make_world(monitoring={"window_days": 7, "min_rows": 100, "reference": "last_year"})
    world.publish("2024-01-01", 28)
    world.train()
    found = monitor(world.spec, as_of="2024-01-28")
    assert found["verdict"] == "undetermined" and "0 rows to compare with" in found["reason"]


def test_only_verdicts_on_the_same_champion_count(world: World) -> None:
    world.publish(LATER, 14, shift=0.5)
    assert monitor(world.spec, as_of="2024-01-27")["verdict"] == "suspected"
    world.train(version="2")
    assert monitor(world.spec, as_of="2024-01-28")["verdict"] == "suspected"
    assert monitor(world.spec, as_of="2024-01-29")["verdict"] == "drifted"


def test_later_verdicts_do_not_count_for_an_earlier_date(world: World) -> None:
    world.publish(LATER, 14, shift=0.5)
    assert monitor(world.spec, as_of="2024-01-30")["verdict"] == "suspected"
    assert monitor(world.spec, as_of="2024-01-28")["verdict"] == "suspected"


def test_a_light_column_alone_is_no_drift(make_world: Make) -> None:
    world = make_world(monitoring={"window_days": 7, "min_rows": 100, "drift_share": 0.5})
    world.publish("2024-01-01", 21)
    world.train()
    world.publish(LATER, 7, k="'z' || (i % 3)")
    found = monitor(world.spec, as_of="2024-01-28")
    assert (
        found["verdict"] == "ok" and found["drifted"] == ["k"] and found["drift_share"] == pytest.approx(0.3)
    )


def test_a_jump_in_nulls_is_drift(world: World) -> None:
    world.publish(LATER, 7, x="CASE WHEN i % 5 > 0 THEN (hash(i) % 1000) / 1000.0 END")
    found = monitor(world.spec, as_of="2024-01-28")
    assert found["verdict"] == "suspected" and found["drifted"] == ["x"]
    assert next(r for r in table(world) if r["column"] == "x")["reason"].startswith(
        "rows without a value went from 0.0%"
    )


@pytest.mark.parametrize("value", ["NULL::DOUBLE", "3.0", "'inf'::DOUBLE", "'nan'::DOUBLE", "-1e308"])
def test_no_column_kills_the_verdict_or_the_report(world: World, value: str) -> None:
    world.publish(LATER, 7, x=value)
    found = monitor(world.spec, as_of="2024-01-28")
    assert found["verdict"] == "suspected" and Path(found["report"]).is_file()


def test_hostile_values_stay_values(world: World) -> None:
    hostile = "WHEN 0 THEN '</script><script>alert(1)</script>' WHEN 1 THEN '=cmd()' WHEN 2 THEN repeat('x', 100000)"
    world.publish(LATER, 7, k=f"CASE i % 4 {hostile} END")
    found = monitor(world.spec, as_of="2024-01-28")
    assert found["drifted"] == ["k"]
    assert "<script>alert" not in Path(found["report"]).read_text()


def test_without_a_champion_the_verdict_is_undetermined(make_world: Make) -> None:
    world = make_world()
    found = monitor(world.spec, as_of="2024-01-28")
    assert found["verdict"] == "undetermined" and "no champion" in found["reason"]
    assert Path(found["report"]).is_file() and manifests.read("toy", "monitor", "2024-01-28")


def test_an_empty_window_is_undetermined(world: World) -> None:
    found = monitor(world.spec, as_of="2025-06-01")
    assert found["verdict"] == "undetermined" and "0 rows" in found["reason"]
    assert found["performance"]["verdict"] == "undetermined"


def test_a_window_of_too_few_rows_is_undetermined(make_world: Make) -> None:
    world = make_world(monitoring={"window_days": 7, "min_rows": 300})
    world.publish("2024-01-01", 21)
    world.train()
    world.publish(LATER, 1, shift=0.5)
    assert monitor(world.spec, as_of="2024-01-28")["verdict"] == "undetermined"


def test_a_feature_that_vanished_cannot_be_judged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish(LATER, 7)
    trained = world.spec.model_copy()
    trained._sql = "SELECT id, x, k AS renamed, who FROM rows"
    changed = trained.model_copy(
        update={"features": trained.features.model_copy(update={"categorical": ["renamed", "who"]})}
    )
    monkeypatch.setattr(registry, "spec", lambda version: changed)
    found = monitor(world.spec, as_of="2024-01-28")
    assert found["verdict"] == "ok" and found["judged_share"] == pytest.approx(0.7)


def test_a_rise_of_the_loss_is_certain_after_some_nights_and_not_after_one(world: World) -> None:
    world.publish(LATER, 7)
    world.label(LATER, 4, TRUTH)
    for n in range(3):  # what was rare has become the rule
        world.label(dates.add_days(LATER, 4 + n), 1, f"1 - {TRUTH}")
    found = [monitor(world.spec, as_of=dates.add_days(LATER, n))["signals"]["performance"] for n in (4, 5, 7)]
    assert [f["state"] for f in found] == ["ok", "suspected", "bad"]
    assert found[-1]["since"] == dates.add_days(LATER, 4)
    result = monitor(world.spec, as_of=dates.add_days(LATER, 7))
    assert result["performance"]["verdict"] == "dropped" and result["performance"]["degraded"] is True


def test_a_second_run_is_a_no_op_and_new_data_is_not(world: World) -> None:
    world.publish(LATER, 7)
    first = monitor(world.spec, as_of="2024-01-28")
    version = delta_tables.version(delta_tables.table_uri("monitoring", "toy"))
    assert monitor(world.spec, as_of="2024-01-28")["status"] == "unchanged"
    assert delta_tables.version(delta_tables.table_uri("monitoring", "toy")) == version
    world.publish("2024-01-28", 1, shift=9)
    again = monitor(world.spec, as_of="2024-01-28")
    assert again["status"] == "monitored" and first["status"] == "monitored"
    world.publish("2024-01-29", 1)  # outside the window
    assert monitor(world.spec, as_of="2024-01-28")["status"] == "unchanged"


def test_a_forced_rerun_gives_the_same_content(world: World) -> None:
    world.publish(LATER, 7, shift=0.3)
    first = monitor(world.spec, as_of="2024-01-28")
    rows = table(world)
    assert monitor(world.spec, as_of="2024-01-28", force=True) == first
    assert table(world) == rows


def test_a_run_killed_before_its_manifest_is_done_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(LATER, 7)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(manifests, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            monitor(world.spec, as_of="2024-01-28")
    assert manifests.read("toy", "monitor", "2024-01-28") is None
    assert monitor(world.spec, as_of="2024-01-28")["status"] == "monitored"
    assert sum(r["role"] != "signal" for r in table(world)) == 6


def test_personal_values_appear_nowhere(world: World) -> None:
    world.publish(LATER, 7, shift=0.5)
    monitor(world.spec, as_of="2024-01-28")
    for path in [
        *Path(settings().lake, "reports").rglob("*.*"),
        *Path(settings().lake, "manifests").rglob("*.json"),
    ]:
        assert "person 1" not in path.read_text(), path
    for path in (world.folder / "artifacts").rglob("*.json"):
        assert "person 1" not in path.read_text(), path
    assert "person" not in str(table(world))


@pytest.mark.parametrize("name", ["reference.json", "importance.json", "evaluation.json"])
def test_a_damaged_companion_is_an_error_that_says_what_to_do(world: World, name: str) -> None:
    world.publish(LATER, 7)
    path = world.folder / "artifacts" / "run-1" / name
    path.write_text(path.read_text()[:-5])
    with pytest.raises(ArtifactError, match="train"):
        monitor(world.spec, as_of="2024-01-28")
    assert manifests.read("toy", "monitor", "2024-01-28") is None


def test_the_verdict_does_not_need_the_sample(world: World) -> None:
    world.publish(LATER, 7)
    (world.folder / "artifacts" / "run-1" / "reference.parquet").write_bytes(b"")
    found = monitor(world.spec, as_of="2024-01-28")
    assert found["verdict"] == "ok" and "Not in the picture" in Path(found["report"]).read_text()


def test_mlflow_down_is_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(spec: object) -> None:
        raise RegistryError("MLflow does not answer", "start it")

    monkeypatch.setattr(registry, "champion", down)
    with pytest.raises(RegistryError):
        monitor(world.spec, as_of="2024-01-28")


@pytest.mark.parametrize("as_of", ["", "2024-1-1", "yesterday", "2024-01-28; DROP", "../../etc"])
def test_a_date_is_needed(world: World, as_of: str) -> None:
    with pytest.raises(PerennialError, match="not a date"):
        monitor(world.spec, as_of=as_of)


def test_a_window_may_reach_back_before_everything(world: World) -> None:
    assert monitor(world.spec, as_of="2024-01-03")["verdict"] in ("ok", "suspected")
    assert dates.add_days("2024-01-03", -6) == "2023-12-28"
