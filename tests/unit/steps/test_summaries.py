"""The lines that end the log of each step."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from perennial.core import dates
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch, summaries
from perennial.storage import delta_tables, manifests
from support import toys

GATE = {"passed": True, "reasons": ["ok: evaluated on 300 of 300 rows", "ok: log_loss 0.2"]}
TRAINED = {
    "as_of": "2024-01-20", "version": "3", "algorithm": "trees", "rounds": 1, "trials": 12, "device": "cpu",
    "status": "trained", "rows": {"fit": 1720, "valid": 120, "holdout": 300}, "window": "sliding", "reason": "drift",
    "dataset_version": {"published": 7, "labels": None, "references": {"places": 0}}, "run_id": "abc",
    "metrics": {"log_loss": 0.2, "auc": 0.9}, "gate": GATE,
}  # fmt: skip
PUBLISHED = {
    "partitions": ["2024-01-19", "2024-01-20"], "rows_in": 1000, "rows_out": 990, "quarantined": 10, "labels": 900,
    "labels_quarantined": 1, "version": 4, "labels_version": 5, "docs": [], "status": "published",
}  # fmt: skip
SIGNALS = {
    "performance": {"state": "bad", "reason": "log_loss 0.5 against 0.2"},
    "volume": {"state": "ok", "reason": "60 rows"},
    "labels": {"state": "undetermined", "reason": "none is due"},
}
MONITORED = {
    "as_of": "2024-01-20", "start": "2024-01-14", "verdict": "drifted", "reason": "40% drifted", "model_version": "3",
    "performance": {"verdict": "dropped", "reason": "log_loss 0.5 against 0.2"}, "signals": SIGNALS,
    "drifted": ["x", "k"], "report": "s3://lake/reports/toy/monitor/2024-01-20.html", "status": "monitored",
}  # fmt: skip
DECIDED = {
    "as_of": "2024-01-20", "retrain": True, "proposed": False, "reason": "the loss rose", "triggers": ["performance"],
    "report": "", "decided_by": "retraining policy",
}  # fmt: skip
SCORED = {
    "partitions": ["2024-01-20"], "missing": [], "rows_in": 60, "rows_out": 60, "model_version": "3",
    "status": "scored",
}  # fmt: skip
WRITTEN = {"partitions": ["2024-01-20"], "rows": 60, "table": "scores", "status": "published", "late": []}
ERASED = {
    "request": "0" * 16, "rows": {"published": 3, "labels": 0}, "files": 2, "reports": 0,
    "published_again": ["2024-01-20"], "versions": ["1", "2"], "champion": True, "joining": {"other": ["7"]},
    "landed": ["/landing/a.csv"],
    "hidden": 1, "references": ["places"], "other_models": ["other"],
    "remaining": ["feature table gone, whose folder is gone"],
}  # fmt: skip
PROMOTED = {"promoted": True, "version": "3", "previous": "2", "reason": "better"}

#: Step, result, and lines of its log, in order.
ROLLED_BACK = {"version": "2", "previous": "3"}
REPRODUCED = {
    "version": "2", "outcome": "different", "files": {}, "metrics": {"log_loss": (0.5, 0.25)},
    "differences": ["numpy: 1 then, 2 now"],
}  # fmt: skip
OUTCOMES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("data", PUBLISHED, [
        "Published 2 partitions (2024-01-19 to 2024-01-20) of toy.",
        "Rows: 1,000 read, 990 published, 10 quarantined (1.00%); table version 4.",
        "Labels: 900 published, 1 quarantined; table version 5.",
    ]),
    ("data", PUBLISHED | {"status": "unchanged", "partitions": ["2024-01-20"]}, [
        "Nothing to do: 2024-01-20 of toy published from the same data before.",
    ]),
    ("data", PUBLISHED | {"status": "not begun", "rows_in": 0, "labels": 0, "labels_quarantined": 0,
                          "late": ["2024-01-18"], "late_labels": ["2024-01-17"]}, [
        "Nothing was published: the partition of toy has not landed, and none did before.",
        "Overdue, and published in addition: 2024-01-18.",
        "Overdue, and labels published in addition: 2024-01-17.",
    ]),
    ("train", TRAINED, [
        "Trained version 3 of toy as of 2024-01-20: trees, 1 round, 12 search trials, on cpu.",
        "Requested because: drift.",
        "Rows: 1,720 to fit, 120 for early stopping, 300 held out "
        "(window sliding; table versions published 7, places 0).",
        "On the held-out rows: auc 0.9000, log_loss 0.2000.",
        "Gate: version 3 passed.",
        "  ok: evaluated on 300 of 300 rows",
        "  ok: log_loss 0.2",
        "MLflow run: http://mlflow.example.com/#/runs/abc",
    ]),
    ("train", TRAINED | {"gate": {"passed": False, "reasons": ["failed: worse"]}}, [
        "Gate: version 3 was rejected.", "  failed: worse",
    ]),
    ("train", TRAINED | {"status": "unchanged"}, [
        "Nothing to do: version 3 of toy was trained as of 2024-01-20 from the same data.",
    ]),
    ("promote", PROMOTED, ["Version 3 of toy is champion in place of version 2.", "Reason: better."]),
    ("promote", PROMOTED | {"previous": None}, ["Version 3 of toy is champion."]),
    ("promote", PROMOTED | {"promoted": False}, ["Version 3 of toy was not promoted: version 2 stays champion."]),
    ("promote", PROMOTED | {"promoted": False, "previous": None}, [
        "Version 3 of toy was not promoted: there is still no champion.",
    ]),
    ("score", SCORED | {"missing": ["2024-01-19"], "late": ["2024-01-18"]}, [
        "Scored 2024-01-20 of toy with version 3, the champion.",
        "Rows: 60 published, 60 predictions.",
        "Not published, and so not scored: 2024-01-19.",
        "Overdue, and scored in addition: 2024-01-18.",
    ]),
    ("score", SCORED | {"challenger": "4"}, ["Version 4, on trial, scored its share of the rows."]),
    ("score", SCORED | {"status": "unchanged", "partitions": []}, [
        "Nothing to do: version 3 of toy scored the same rows before.",
    ]),
    ("score", SCORED | {"status": "no champion", "model_version": None}, [
        "Nothing was scored: toy has no champion yet.",
    ]),
    ("monitor", MONITORED, [
        "Monitored toy from 2024-01-14 to 2024-01-20: version 3.",
        "Verdict: drifted: 40% drifted.",
        "Performance: dropped: log_loss 0.5 against 0.2.",
        "Signals: 1 bad, 1 undetermined, 1 ok.",
        "  performance is bad: log_loss 0.5 against 0.2",
        "  labels is undetermined: none is due",
        "Drifted columns: x, k.",
        "Report: https://airflow.example.com/toy/monitor/2024-01-20.html",
    ]),
    ("monitor", MONITORED | {"model_version": None, "signals": {}, "drifted": []}, [
        "Monitored toy from 2024-01-14 to 2024-01-20: no champion.",
    ]),
    ("monitor", MONITORED | {"status": "unchanged"}, [
        "Nothing to do: toy was monitored as of 2024-01-20 from the same data before.",
    ]),
    ("decide", DECIDED, [
        "Decided on toy as of 2024-01-20: a retraining is requested (by retraining policy).",
        "Reason: the loss rose.",
        "Triggers: performance.",
    ]),
    ("decide", DECIDED | {"retrain": False, "proposed": True}, [
        "Decided on toy as of 2024-01-20: a retraining is proposed; a person has to approve it (by retraining policy).",
    ]),
    ("decide", DECIDED | {"retrain": False, "triggers": []}, [
        "Decided on toy as of 2024-01-20: no retraining (by retraining policy).", "Reason: the loss rose.",
    ]),
    ("conclude", {"promoted": False, "reason": "no challenger is on trial"}, [
        "The champion of toy stays as it is.", "Reason: no challenger is on trial.",
    ]),
    ("conclude", PROMOTED, ["Version 3 of toy is champion in place of version 2.", "Reason: better."]),
    ("rollback", ROLLED_BACK, ["Version 2 of toy is champion again in place of version 3."]),
    ("rollback", ROLLED_BACK | {"seconds": 4.25, "scored": ["2024-01-02", "2024-01-05..2024-01-07"]}, [
        "Version 2 of toy is champion again in place of version 3, after 4.2 s.",
        "Version 3 scored 2024-01-02, 2024-01-05..2024-01-07. To score them again, unless the run does so:",
        "  perennial run score --model toy --start 2024-01-02 --end 2024-01-02",
        "  perennial run score --model toy --start 2024-01-05 --end 2024-01-07",
    ]),
    ("reproduce", REPRODUCED, [
        "Of toy: version 2, trained again, is another model (numpy: 1 then, 2 now).",
        "  log_loss: 0.5 then, 0.25 now", "  numpy: 1 then, 2 now",
    ]),
    ("publish_predictions", WRITTEN | {"late": ["2024-01-18"]}, [
        "Wrote the predictions of 2024-01-20 of toy to the table scores.",
        "Rows: 60 predictions.",
        "Overdue, and written in addition: 2024-01-18.",
    ]),
    ("erase", ERASED, [
        "Rows removed of toy: 3 of published. Files of older table versions deleted: 2.",
        "Replaced in the database: predictions of 2024-01-20.",
        "Train again, then delete in MLflow: versions 1, 2, which were trained or evaluated on these partitions, the "
        "champion among them.",
        "Train other again, too: its versions 7 learned features of such rows.",
        "Not touched: these landed files may still hold such rows, which are not published again: /landing/a.csv.",
        "1 record of quarantine may be of the keys: a column of them is hidden there. With --hidden (hidden in the "
        "form) all of these are removed.",
        "Land these reference tables without such rows: places.",
        "Erase there, too, since feature tables read their rows or they have the same columns: other.",
        "Not searched, and may have such values: feature table gone, whose folder is gone.",
    ]),
    ("publish_predictions", WRITTEN | {"status": "unchanged"}, [
        "Nothing to do: the table scores has the same predictions of 2024-01-20 of toy.",
    ]),
]  # fmt: skip


@pytest.fixture
def spec(empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    monkeypatch.setenv("PERENNIAL_MLFLOW_UI", "http://mlflow.example.com/")
    return toys.model(tmp_path / "models", "toy")


@pytest.mark.parametrize(("step", "result", "expected"), OUTCOMES)
def test_each_outcome_says_what_was_done_how_much_and_why(
    spec: ModelSpec, step: str, result: dict[str, Any], expected: list[str]
) -> None:
    lines = summaries.summarise(step, spec, result).text(
        lambda uri: uri.replace("s3://lake/reports", "https://airflow.example.com")
    )
    assert [line for line in lines if line in expected] == expected
    assert all(lines)


def test_every_step_says_what_it_did() -> None:
    assert {step for step, _, _ in OUTCOMES} == set(dispatch.STEPS)


def test_a_range_points_to_the_folder_of_its_pages_and_to_the_quarantine(spec: ModelSpec) -> None:
    docs = [f"lake/reports/toy/validation/2024-01-{day}.json" for day in (19, 20)]
    summary = summaries.summarise("data", spec, PUBLISHED | {"docs": docs})
    assert summary.report == "lake/reports/toy/validation"
    assert delta_tables.table_uri("quarantine", "toy") in "\n".join(summary.lines)
    assert summary.text()[-1] == f"Manifest: {manifests.uri('toy', 'data', '2024-01-19').rpartition('/')[0]}"


def test_the_log_of_a_heavy_step_names_its_manifest_last(spec: ModelSpec) -> None:
    lines = {step: summaries.summarise(step, spec, result).text() for step, result, _ in OUTCOMES}
    assert lines["score"][-1] == f"Manifest: {manifests.uri('toy', 'score', '2024-01-20')}"
    assert lines["train"][-1] == f"Manifest: {manifests.uri('toy', 'train', '2024-01-20')}"
    assert not lines["promote"][-1].startswith("Manifest")


def test_a_result_of_another_version_fails_nothing(spec: ModelSpec, caplog: pytest.LogCaptureFixture) -> None:
    summaries.log_summary("data", spec, {"partitions": ["2024-01-20"]})
    assert "What the step data did cannot be said in words: KeyError" in caplog.text


def test_a_good_run_of_the_loop_logs_its_lines_and_nothing_above_info(
    empty_home: Path,
    tmp_path: Path,
    mlflow_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Standard error included: Airflow shows each of its lines as an error."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    spec = toys.model(tmp_path / "models", toys.unique())
    toys.land(spec)
    window = {"start": dates.add_days(toys.LAST, -6), "end": toys.LAST}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("data", {"start": toys.FIRST, "end": toys.LAST}),
        ("train", {"as_of": toys.LAST, "reason": "first"}),
        ("promote", {"as_of": toys.LAST, "actor": "ann"}),
        ("score", window),
        ("monitor", {"as_of": toys.LAST}),
        ("decide", {"as_of": toys.LAST, "actor": "ann", "backfill": False}),
        ("conclude", {"as_of": toys.LAST, "actor": "ann"}),
    ]
    with caplog.at_level(logging.INFO):
        for step, arguments in calls:
            caplog.clear()
            result = dispatch.run(step, spec, **arguments)
            summaries.log_summary(step, spec, result)
            assert [r.getMessage() for r in caplog.records if r.levelno > logging.INFO] == []
            lines = summaries.summarise(step, spec, result).text()
            assert [r.getMessage() for r in caplog.records][-len(lines) :] == lines
            assert spec.name in lines[0]
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO: ")]
    assert errors == []
