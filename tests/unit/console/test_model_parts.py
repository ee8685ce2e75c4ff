"""Pages about parts of a model: versions, features, ledger, cost; as HTML, as JSON, and as files."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from perennial.console import _run_page, overview
from perennial.console.actions import RunDetails
from perennial.console.views import cost as cost_view
from perennial.core.errors import LedgerError, SpecError
from perennial.core.settings import settings
from perennial.modeling import performance, registry
from perennial.spec.compute_profile import Price
from perennial.spec.model_spec import ModelSpec
from perennial.status import cost
from perennial.status.history import Entry, History
from perennial.storage import ledger, manifests
from perennial.storage.ledger import Decision, LedgerKind
from support.console.world import HOSTILE, KEYS, PERSON

PARTS = ("versions/2", "compare", "features", "ledger", "cost")


def content(browser: TestClient, path: str) -> Any:
    answer = browser.get(f"{path}.json")
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_a_page_and_json_without_markup_of_a_user(browser: TestClient, part: str) -> None:
    page = browser.get(f"/models/drifted/{part}")
    assert page.status_code == 200 and "<img" not in page.text and "style=" not in page.text
    assert "unsafe" not in page.headers["content-security-policy"]
    assert content(browser, f"/models/drifted/{part}")["model"] == "drifted"
    assert browser.post(f"/models/drifted/{part}").status_code == 405


@pytest.mark.parametrize("part", PARTS[2:])
@pytest.mark.parametrize("model", ["untouched", "broken"])
def test_parts_of_a_model_without_any_say_so(browser: TestClient, model: str, part: str) -> None:
    page = browser.get(f"/models/{model}/{part}")
    assert page.status_code == 200 and 'class="empty"' in page.text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("versions/9", 404), ("versions/x", 404), ("compare?a=2&b=9", 404), ("ledger?kind=none", 503),
        ("ledger?before=x", 422),
    ],
)  # fmt: skip
def test_parts_that_are_not_there(browser: TestClient, path: str, status: int) -> None:
    assert browser.get(f"/models/well/{path}").status_code == status
    assert browser.get("/models/fresh/compare").status_code == 404


def test_a_version_with_lineage_metrics_gate_and_what_it_scored(browser: TestClient) -> None:
    version = content(browser, "/models/well/versions/1")
    assert not version["is_champion"] and version["others"] == ["2"] and version["problems"] == []
    facts = {fact["name"]: fact["value"] for fact in version["lineage"]}
    assert (
        facts["Table published"].startswith("version 7 of ")
        and facts["Reference table places"] == "version 1"
    )
    assert facts["Spec"] == "1" * 64 and facts["Airflow run"] == "manual__1"
    assert version["coverage"] == "290 of 300 held-out rows; left out: 10 without a label"
    assert [(c["other"], c["low"], c["rows"]) for c in version["comparisons"]] == [
        ("baseline: constant", 0.4, 290)
    ]
    assert version["criteria"][0] == [True, "evaluated on 290 of 300 rows (10 without a label)"]
    assert version["candidates"]["window"] == {"long": 0.31, "since the change": 0.33}
    assert [(m["name"], m["better"], m["monitored"]) for m in version["metrics"]] == [
        ("auc", "higher", None), ("log_loss", "lower", 0.33),
    ]  # fmt: skip
    assert [(t["change"], t["successor"]) for t in version["terms"]] == [("promoted", "2")]
    assert version["groups"][0]["reason"] == "place=Oslo: as expected"
    assert version["scored"] == [[f"{KEYS[5]}", 1], [f"{KEYS[2]}..{KEYS[3]}", 2]]
    page = browser.get("/models/well/versions/2").text
    assert "champion, version 1" in page and "/models/well/compare?a=1&amp;b=2" in page
    assert "#/runs/run2" in page and "/reports/well/training/" in page
    urls = {fact["name"]: fact["url"] for fact in version["lineage"]}
    assert urls["MLflow run"].endswith("#/runs/run1")
    assert urls["Airflow run"] == "", "outside Airflow, runs have no page"


def test_metrics_have_intervals_and_slices_say_what_they_rest_on(
    browser: TestClient, world: dict[str, ModelSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = content(browser, "/models/well/versions/2")
    assert [(m["name"], round(m["low"], 4), round(m["high"], 4)) for m in version["metrics"]] == [
        ("auc", 0.78, 0.82), ("log_loss", 0.27, 0.31),
    ]  # fmt: skip
    slices = version["held_out"]["slices"]
    assert [(s["value"], s["rows"], s["too_few"]) for s in slices] == [
        (HOSTILE, 150, ""), ("Oslo", 20, "too few rows: 20, 100 are needed"),
    ]  # fmt: skip
    page = browser.get("/models/well/versions/2").text
    assert "0.39 (0.37 to 0.41)" in page and "-8.00% (-12.00% to -3.00%)" in page
    assert "too few rows: 20, 100 are needed" in page and "120 rows have another value of place" in page
    pictures = re.findall(r'<svg [^>]*aria-label="([^"]*)', page)
    assert [re.sub(r"[.].*", "", label) for label in pictures] == [
        "Log loss by place (lower is better)",
        "Improvement over the champion by place",
        "Error rate by place",
    ]
    assert "this version, all rows: 0.29" in pictures[0] and ": -8.0%" in pictures[1]
    assert page.count("tag-worse") == 1 and "champion then, same rows" in page and "<img" not in page
    first = browser.get("/models/well/versions/1").text
    assert "tag-worse" not in first and "champion then" not in first

    compared = browser.get("/models/well/compare.json?a=1&b=2").json()["rows"]
    by_name = {(row["section"], row["name"]): row["values"] for row in compared}
    assert by_name["Metrics on the held-out rows", "log loss"] == [
        "0.3 (0.28 to 0.32)",
        "0.29 (0.27 to 0.31)",
    ]
    assert by_name["Slices of the held-out rows by place", HOSTILE] == [
        "log loss 0.4 (0.38 to 0.42); auc 0.7 (0.68 to 0.72); 150 rows",
        "log loss 0.39 (0.37 to 0.41); auc 0.7 (0.68 to 0.72); 150 rows",
    ]


def test_gaps_between_groups_are_shown_with_what_is_not_judged(
    browser: TestClient, world: dict[str, ModelSpec]
) -> None:
    stored = content(browser, "/models/well/versions/2")["fairness"]
    (verdict,) = stored["verdicts"]
    assert (verdict["columns"], verdict["value"], verdict["highest"]) == (["place"], 0.15, HOSTILE)
    page = browser.get("/models/well/versions/2").text
    assert "<h3>Fairness</h3>" in page and "at most 0.2" in page and "<img" not in page
    assert "place, error rate: 3 groups with 41 rows together have too few." in page
    assert content(browser, "/models/well/versions/1")["fairness"] is None
    assert "<h3>Fairness</h3>" not in browser.get("/models/well/versions/1").text


def test_slices_of_a_column_that_became_personal_data_are_not_shown(
    browser: TestClient, world: dict[str, ModelSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainings stored values of ``who``, which is personal data by now; without the spec, nobody knows."""
    for path in ("versions/2", "versions/2.json", "compare", "compare.json"):
        assert PERSON not in browser.get(f"/models/well/{path}").text

    def fail(name: str) -> ModelSpec:
        raise SpecError("a test", "nothing")

    monkeypatch.setattr(overview, "load_spec", fail)
    version = content(browser, "/models/well/versions/2")
    assert version["held_out"]["slices"] == [] and version["metrics"][0]["low"]
    assert "slices" in [title for title, *_ in version["problems"]]


def test_a_performance_file_that_is_not_the_recorded_one_is_not_shown(
    browser: TestClient, world: dict[str, ModelSpec]
) -> None:
    file = settings().home / "cache" / "runs" / "run2" / performance.ARTIFACT
    stored = file.read_text()
    try:
        file.write_text(stored.replace("0.29", "0.19"))
        version = content(browser, "/models/well/versions/2")
    finally:
        file.write_text(stored)
    assert version["held_out"] is None and version["metrics"][0]["low"] is None
    assert "intervals and slices" in [title for title, *_ in version["problems"]]


def test_two_versions_side_by_side_while_mlflow_is_away(
    browser: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = content(browser, "/models/well/compare")
    assert compared["versions"] == ["2", "1"] and compared["spec_changes"] is None
    rows = {row["name"]: row for row in compared["rows"]}
    assert not rows["Device"]["differs"] and rows["Trained as of"]["values"] == [KEYS[5], KEYS[1]]
    assert rows["log loss"]["differs"] and rows["log loss"]["better"] is None, "of other held-out dates"
    page = browser.get("/models/well/compare?a=1&b=2")
    assert page.status_code == 200 and "The comparison of the specs cannot be shown" in page.text

    def spec(version: Any, _: str) -> Any:
        return {"model": {"training": {"rounds": int(version.version) * 100}}, "sql": "SELECT"}

    monkeypatch.setattr(registry, "load_json_artifact", spec)
    changes = content(browser, "/models/well/compare")["spec_changes"]
    assert [(row["name"], row["values"]) for row in changes] == [("training.rounds", ["200", "100"])]


def test_features_by_importance_and_drift_with_both_histograms(browser: TestClient) -> None:
    page = content(browser, "/models/well/features")
    assert (page["as_of"], page["version"], page["total"]) == (KEYS[-1], "2", 3)
    assert [f["column"] for f in page["features"]] == ["x", "k", "prediction"]
    x, k, _ = page["features"]
    assert x["bins"] == ["≤ 0.5", "0.5–1.25", "1.25–12,000", "> 12,000", "no value"]
    assert (x["reference"], x["current"]) == ([100, 200, 150, 50, 0], [20, 60, 120, 97, 3])
    assert k["bins"] == ["a0", HOSTILE, "others", "no value"]
    by_name = content(browser, "/models/well/features")["features"]
    assert {f["status"] for f in by_name} == {"drifted", "stable"}
    model = browser.get("/models/well").text
    assert "the largest change is in bin &gt; 12,000: 10.0% to 32.3% of the rows" in model
    assert "/models/well/features" in model


def test_what_features_are_worth(browser: TestClient) -> None:
    known = content(browser, "/models/well/features")["usefulness"]
    assert [(unit["name"], unit["verdict"]) for unit in known["units"]] == [
        ("x", "helps"),
        (HOSTILE, "harms"),
    ]
    page = browser.get("/models/well/features").text
    assert "+4.00% to +6.00%" in page and "These features do not help: " in page and HOSTILE not in page
    assert content(browser, "/models/fresh/features")["usefulness"] is None


def test_damaged_usefulness_hides_no_histograms(browser: TestClient) -> None:
    manifest = manifests.latest("well", "train")
    assert manifest is not None
    damaged = {**manifest.result["usefulness"], "units": [{"name": "x"}]}
    manifests.rewrite(replace(manifest, result={**manifest.result, "usefulness": damaged}))
    page = browser.get("/models/well/features").text
    assert "Usefulness cannot be shown" in page and "the manifest of the latest training is damaged" in page
    assert len(content(browser, "/models/well/features")["features"]) == 3


def test_the_ledger_by_kind_verified_and_as_files(
    browser: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = content(browser, "/models/drifted/ledger")
    assert page["total"] == 4 and page["kinds"] == {"promotion": 2, "training": 2}
    assert [record["sequence"] for record in page["records"]] == [4, 3, 2, 1]
    assert page["verification"]["state"] == "ok" and page["before"] == 0
    filtered = browser.get("/models/drifted/ledger.json?kind=training&before=3").json()["records"]
    assert [record["sequence"] for record in filtered] == [1]
    rows = list(csv.DictReader(io.StringIO(browser.get("/models/drifted/ledger.csv").text)))
    assert [row["decision"] for row in rows] == ["accepted", "promoted"] * 2
    assert json.loads(rows[0]["evidence"])["run_id"] == "run1" and rows[2]["actor"] == HOSTILE
    exported = browser.get("/models/drifted/ledger/export.json?kind=promotion")
    assert exported.headers["content-disposition"] == 'attachment; filename="drifted-ledger.json"'
    assert [record["hash"] for record in exported.json()] == [rows[1]["hash"], rows[3]["hash"]]
    assert browser.get("/models/untouched/ledger/export.json").json() == []

    def broken(_: str) -> int:
        raise LedgerError("record 2 of the ledger was changed", "compare with a backup", model="drifted")

    monkeypatch.setattr(ledger, "verify", broken)
    text = browser.get("/models/drifted/ledger").text
    assert "The chain is broken" in text and "compare with a backup" in text


def test_the_manifest_of_a_step_is_a_file(browser: TestClient) -> None:
    answer = browser.get(f"/models/drifted/manifests/data/{KEYS[0]}.json")
    assert answer.headers["content-disposition"] == f'attachment; filename="drifted-data-{KEYS[0]}.json"'
    assert (answer.json()["step"], answer.json()["key"]) == ("data", KEYS[0])
    for path in ("data/2000-01-01", "..%2F..%2Fledger/x", "data/.hidden", "nothing/2024-01-01"):
        assert browser.get(f"/models/drifted/manifests/{path}.json").status_code == 404, path


def test_a_run_shows_its_own_decisions_and_those_about_versions_that_it_trained(
    world: dict[str, ModelSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_HOME", str(shutil.copytree(settings().home, tmp_path / "home")))

    def decided(stage: str, run_id: str) -> list[str]:
        run = RunDetails(f"drifted.{stage}", run_id, "success", "", {}, "", "", "", "", "", "")
        page = _run_page.compose("drifted", stage, run)
        assert page is not None
        return [f"{d['kind']} {d['decision']} {d['model_version']}" for d in page.decisions]

    assert decided("train", "manual__1") == [
        f"{kind} {version}" for version in "12" for kind in ("training accepted", "promotion promoted")
    ]
    assert decided("train", "manual__") == decided("score", "manual__1") == []
    ledger.append("drifted", kind=LedgerKind.RETRAINING, decision=Decision.DECLINED, reason="calm",
                  actor="retraining policy", partition=KEYS[0], evidence={"run_id": "scheduled__10"})  # fmt: skip
    assert decided("monitor", "scheduled__10") == ["retraining declined "]
    assert decided("monitor", "scheduled__1") == []
    ledger.append("drifted", kind=LedgerKind.ROLLBACK, decision=Decision.ROLLED_BACK, reason="worse", actor="ann",
                  model_version="1", evidence={"run_id": "mlflow1", "airflow_run": "manual__7"})  # fmt: skip
    assert decided("rollback", "manual__7") == ["rollback rolled back 1"]


def test_a_page_reads_the_ledger_once(browser: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = ledger._read

    def counted(model: str, *kinds: Any) -> Any:
        read.append(model)
        return real(model, *kinds)

    monkeypatch.setattr(ledger, "_read", counted)
    for part in ("", "/versions/2", "/ledger"):
        read.clear()
        assert browser.get(f"/models/well{part}").status_code == 200
        assert read == ["well"], part


def test_cost_by_run_and_month(browser: TestClient, world: dict[str, ModelSpec], monkeypatch: Any) -> None:
    per_hour = {"train": Price(per_hour=6.0, currency="EUR")}
    monkeypatch.setattr(cost, "prices", lambda _: per_hour)
    page = content(browser, "/models/well/cost")
    training = next(run for run in page["runs"] if run["step"] == "train")
    assert page["currency"] == "EUR" and training["money"] == pytest.approx(1.0, rel=0.05)
    assert training["gpu_seconds"] == training["seconds"] and training["memory_mb"] > 0
    assert "EUR" in browser.get("/models/well/cost").text
    everything = content(browser, "/cost")
    assert {row["model"] for row in everything["rows"]} == {"well", "drifted", "fresh"}
    assert everything["rows"][0]["model"] == "well" and everything["money"] == {}
    assert "Money is shown once the compute profiles" in browser.get("/cost").text


def test_money_of_ranges_is_counted_once_and_of_several_currencies_not_at_all() -> None:
    entry = Entry(1, 1, seconds=3600.0, memory_mb=100, finished_at="2024-05-01T10:00:00Z", run_id="r")
    history = History({"data": {"2024-05-01": entry, "2024-05-02": entry}, "score": {"2024-05-01": entry}})
    prices = {"data": Price(per_hour=2.0, currency="EUR"), "score": Price(per_hour=3.0, currency="EUR")}
    data, score = cost.runs(history, prices)
    assert (data.first, data.last, data.money, score.money) == ("2024-05-01", "2024-05-02", 2.0, 3.0)
    assert cost.by_month([data, score], {"2024-04": {"seconds": 5.0}}) == {
        "2024-04": {"seconds": 5.0},
        "2024-05": {"seconds": 7200.0, "gpu_seconds": 0.0, "memory_mb": 100, "money": 5.0},
    }
    mixed = prices | {"score": Price(per_hour=3.0, currency="USD")}
    assert cost.currency(mixed) == "" and {run.money for run in cost.runs(history, mixed)} == {None}
    assert cost_view.of_all([], "").month == ""
