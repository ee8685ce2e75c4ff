"""The console's pages over a real lake: what they say, that nothing of a user becomes markup, and their speed."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from perennial.console.app import create_app
from perennial.console.host import LocalHost
from perennial.console.time_limit import REMOTE_SECONDS
from perennial.spec.model_spec import ModelSpec
from perennial.status import record
from perennial.storage import ledger
from support.console.world import BAD_ROWS, HOSTILE, KEYS, MISSING, PERSON, WITH_QUARANTINE


def content(browser: TestClient, path: str) -> Any:
    answer = browser.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_models_page_says_how_each_model_is(browser: TestClient) -> None:
    models = {m["name"]: m for m in content(browser, "/models.json")["models"]}
    states = {name: models[name]["state"] for name in ("well", "drifted", "fresh", "untouched", "broken")}
    assert states == {
        "well": "ok", "drifted": "bad", "fresh": "new", "untouched": "unknown", "broken": "bad",
    }  # fmt: skip
    assert models["well"]["status"]["champion"]["version"] == "2"
    assert models["well"]["status"]["last"]["scored"] == models["well"]["due"] == KEYS[-1]
    assert models["drifted"]["open_incidents"][0]["signal"] == "features"
    assert "ownr" in models["broken"]["problem"]
    page = browser.get("/").text
    assert page.index(">drifted<") < page.index(">broken<") < page.index(">well<")
    assert 'aria-label="log loss: 0.33"' in page


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("q=rift", {"drifted"}),
        ("q=PRICING+well", {"well"}),
        ("state=new", {"fresh"}),
        ("owner=tests&tag=pricing", {"well", "drifted", "fresh"}),
        ("q=nothing", set()),
    ],
)
def test_models_are_searched_and_filtered(browser: TestClient, query: str, expected: set[str]) -> None:
    assert {m["name"] for m in content(browser, f"/models.json?{query}")["models"]} == expected


def test_models_are_sorted(browser: TestClient) -> None:
    names = [m["name"] for m in content(browser, "/models.json?sort=name")["models"]]
    assert names == sorted(names)


def test_the_page_of_a_model_shows_loop_charts_calendar_versions_and_decisions(browser: TestClient) -> None:
    page = browser.get("/models/well").text
    for station in ("Data", "Scores", "Monitoring", "Decision", "Training", "Champion"):
        assert f'<span class="station-title">{station}</span>' in page
    assert "Performance: log loss of the labelled rows" in page and "Drift: share of the feature" in page
    assert "Volume: times more or fewer rows than usual" in page
    assert "version 2 promoted by gate" in page
    assert f"{MISSING}: due, not published" in page
    assert f'href="/models/well/quarantine/{WITH_QUARANTINE}"' in page
    assert f"{WITH_QUARANTINE}: scored, labels arrived; 25 rows, {BAD_ROWS} in quarantine" in page


def test_outside_airflow_commands_are_named_and_nothing_can_be_done(browser: TestClient) -> None:
    page = browser.get("/models/well").text
    assert "<code>perennial run score --model well --start PARTITION --end PARTITION</code>" in page
    assert "/actions/" not in page and "<form" not in page
    for action in ("run", "retrain", "rollback", "mute", "pause"):
        assert browser.get(f"/models/well/actions/{action}").status_code == 404
        assert browser.post(f"/models/well/actions/{action}", data={"reason": "why"}).status_code == 404


def test_a_model_as_json(browser: TestClient) -> None:
    answer = browser.get("/models/well", headers={"Accept": "application/json"})
    assert answer.headers["content-type"] == "application/json"
    model = answer.json()
    states = {p["key"]: p["state"] for p in model["partitions"]}
    assert states[MISSING] == "missing" and states[KEYS[1]] == "published" and states[KEYS[2]] == "labelled"
    assert states[KEYS[-1]] == "scored", "labels arrive a day later"
    assert [v["version"] for v in model["versions"]] == ["2", "1"]
    assert [v["is_champion"] for v in model["versions"]] == [True, False]
    assert [d["decision"] for d in model["decisions"]] == ["promoted", "accepted"] * 2
    assert model["verdicts"][-1]["details"]["performance"] == 0.33
    assert model["problems"] == []


def test_quarantined_rows_with_reasons_and_without_personal_values(browser: TestClient) -> None:
    found = content(browser, f"/models/well/quarantine/{WITH_QUARANTINE}.json")["quarantine"]
    assert found["total"] == len(found["rows"]) == BAD_ROWS
    assert found["columns"][0] == "id" and "who" in found["columns"]
    assert sum(found["reasons"].values()) == BAD_ROWS
    assert {row["values"]["x"] for row in found["rows"]} == {"99.0"}
    assert {row["values"]["who"] for row in found["rows"]} == {"(personal data)"}
    page = browser.get(f"/models/well/quarantine/{WITH_QUARANTINE}").text
    assert "Columns of personal data are hidden: who." in page
    assert PERSON not in page
    latest = browser.get("/models/well/quarantine", follow_redirects=False)
    assert latest.headers["location"] == f"/models/well/quarantine/{WITH_QUARANTINE}"


def test_the_download_has_all_rows_and_no_formula(browser: TestClient) -> None:
    answer = browser.get(f"/models/well/quarantine/{WITH_QUARANTINE}.csv")
    assert answer.headers["content-disposition"].endswith(f'"well-quarantine-{WITH_QUARANTINE}.csv"')
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(rows) == BAD_ROWS
    assert {(row["who"], row["k"]) for row in rows} == {("(personal data)", HOSTILE)}
    cells = (cell for row in rows for cell in row.values())
    assert all(not cell.startswith(("=", "+", "-", "@")) for cell in cells)


@pytest.mark.parametrize("path", ["/", "/models/drifted", f"/models/well/quarantine/{WITH_QUARANTINE}"])
def test_hostile_values_stay_text(browser: TestClient, path: str) -> None:
    answer = browser.get(path)
    assert answer.status_code == 200
    assert "<img" not in answer.text
    if path != "/":
        assert "&lt;img src=x onerror=alert(1)&gt;" in answer.text


@pytest.mark.parametrize("path", ["/", "/models/well", "/models/none", f"/models/well/quarantine/{KEYS[0]}"])
def test_a_page_runs_no_script_of_its_own_and_is_framed_by_the_same_site_only(
    browser: TestClient, path: str
) -> None:
    answer = browser.get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'self'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<[^>]*\s(on\w+|style)=|<style|javascript:", answer.text)
    assert re.findall(r"<script[^>]*>", answer.text) == ['<script src="/static/console.js">']


def test_nothing_changes_on_reading(browser: TestClient, world: dict[str, ModelSpec], tmp_path: Path) -> None:
    def files() -> set[tuple[str, int]]:
        from perennial.core.settings import settings

        return {(str(p), p.stat().st_mtime_ns) for p in Path(settings().lake).rglob("*") if p.is_file()}

    before = files()
    for path in ("/", "/models/well", "/models/drifted.json", f"/models/well/quarantine/{WITH_QUARANTINE}"):
        assert browser.get(path).status_code == 200
        assert browser.post(path).status_code == 405
    assert files() == before


def test_a_model_without_anything_says_what_to_do(browser: TestClient) -> None:
    page = browser.get("/models/untouched").text
    assert "Nothing to see yet" in page and "no status was written yet" in page
    assert "No version was trained yet." in page and "No decision is recorded." in page


def test_a_model_without_a_champion(browser: TestClient) -> None:
    page = browser.get("/models/fresh").text
    assert "it has no champion yet" in page and "no champion yet" in page


def test_a_broken_spec_is_shown_with_the_line_and_the_rest_of_the_page(browser: TestClient) -> None:
    page = browser.get("/models/broken").text
    assert "The model&#39;s folder cannot be used" in page and "ownr" in page
    assert browser.get("/models/broken/quarantine/2024-01-01").status_code == 503


def test_a_model_whose_folder_is_gone_is_still_shown(
    browser: TestClient, world: dict[str, ModelSpec]
) -> None:
    status = record.read("well")
    assert status is not None
    record.write(record.parse(json.loads(Path(record.uri("well")).read_text()) | {"model": "gone"}))  # type: ignore[arg-type]
    try:
        model = content(browser, "/models/gone.json")["overview"]
        assert "its folder is gone; the lake still has its data" in [text for _, text in model["findings"]]
        assert browser.get("/models/gone").status_code == 200
    finally:
        Path(record.uri("gone")).unlink()


def test_a_lake_that_cannot_be_read_is_said_and_not_500(
    browser: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lake").write_text("not a folder")
    monkeypatch.setenv("PERENNIAL_LAKE", str(tmp_path / "lake" / "below"))
    page = browser.get("/")
    assert page.status_code == 200
    assert "well" in page.text
    monkeypatch.setenv("PERENNIAL_LAKE", "s3://no-such-bucket/lake")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    began = time.monotonic()
    assert "The lake cannot be read" in browser.get("/").text
    assert browser.get("/models/well").status_code == 503
    assert time.monotonic() - began < 2 * REMOTE_SECONDS, "one request, which is not repeated"


def test_a_page_that_waits_too_long_says_so(browser: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr("perennial.console.time_limit.LOCAL_SECONDS", 0.05)
    monkeypatch.setattr("perennial.storage.pages.find", lambda _: ended.wait(60))
    answer = browser.get("/reports/well")
    ended.set()
    assert answer.status_code == 503 and "did not answer within 0.05 seconds" in answer.text


def test_a_part_that_cannot_be_read_hides_no_other(
    browser: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError(PERSON)

    monkeypatch.setattr(ledger, "_read", fail)
    page = browser.get("/models/well").text
    assert "Ledger cannot be shown" in page and "Drift: share" in page and PERSON not in page


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/models/none", 404), ("/models/none.json", 404), ("/models/%2e%2e", 404), ("/models/<script>", 404),
        ("/models/well/quarantine/2024-13-01", 503), ("/static/app.py", 404), ("/openapi.json", 404), ("/x", 404),
        ("/dags/none.data", 404),
    ],
)  # fmt: skip
def test_what_is_not_there(browser: TestClient, path: str, status: int) -> None:
    answer = browser.get(path)
    assert answer.status_code == status
    assert "<script>" not in answer.text


def test_a_dag_leads_to_its_model(browser: TestClient) -> None:
    answer = browser.get("/dags/well.score", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (302, "/models/well")


def test_a_dag_of_a_feature_table_says_where_to_look(browser: TestClient) -> None:
    answer = browser.get("/dags/features.flight_history")
    assert answer.status_code == 404 and "perennial features show flight_history" in answer.text


def test_links_stay_below_the_path_where_the_console_is_mounted(world: dict[str, ModelSpec]) -> None:
    from fastapi import FastAPI

    outer = FastAPI()
    outer.mount("/perennial", create_app(LocalHost()))
    browser = TestClient(outer)
    for path in ("/perennial/", "/perennial/models/well"):
        links = re.findall(r'(?:href|src|action)="([^"#]+)"', browser.get(path).text)
        assert links and all(link.startswith("/perennial/") for link in links)


def test_reports_are_listed_and_served_in_a_sandbox(browser: TestClient) -> None:
    listed = re.findall(r'href="(/reports/well/[^"]+)"', browser.get("/reports/well").text)
    assert any(WITH_QUARANTINE in link for link in listed)
    policy = browser.get(listed[0]).headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts;")
    assert (
        listed == re.findall(r'href="(/reports/well/[^"]+)"', browser.get("/models/well").text)[: len(listed)]
    )
