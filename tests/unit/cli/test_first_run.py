"""`perennial new --run`: from a sample to predictions in one command, or to what is to be done next."""

from __future__ import annotations

import datetime as dt
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from perennial.cli._step_commands import STEP_COMMANDS
from perennial.cli.app import app
from perennial.cli.new import first_run
from perennial.core.errors import PerennialError
from perennial.spec import catalog
from perennial.steps import dispatch
from perennial.storage import delta_tables, ledger
from support import scaffolds, toys

DAYS, ROWS = 15, 40


def sample(path: Path, *, learnable: bool = True, gap: bool = False) -> Path:
    """Rows of some days; the label depends on two columns, or on nothing. With ``gap``, Sundays have none."""
    rng = np.random.default_rng(0)
    n = DAYS * ROWS
    x, z = rng.normal(size=n), rng.normal(size=n)
    days = [dt.datetime(2024, 1, 1, 8) + dt.timedelta(days=i // ROWS, minutes=i % ROWS) for i in range(n)]
    late = (x + (z > 0) > 0.5) if learnable else rng.random(n) > 0.5
    table = pa.table(
        {"order_id": [f"o{i}" for i in range(n)], "ordered_at": days, "x": x, "z": z, "is_late": late}
    )
    if gap:
        table = table.filter(pa.array([day.weekday() != 6 for day in days]))
    return scaffolds.write(path, table)


def new(name: str, path: Path, *arguments: str, answers: str | None = None) -> Result:
    arguments = ("new", name, "--sample", str(path), "--label", "is_late", "--owner", "me", *arguments)
    return CliRunner().invoke(app, list(arguments), input=answers)


@pytest.mark.slow
def test_a_sample_becomes_predictions(mlflow_home: Path, tmp_path: Path) -> None:
    name = toys.unique("orders")
    done = new(name, sample(tmp_path / "orders.parquet", gap=True), "--yes", "--run")
    assert done.exit_code == 0, (done.output, done.exception)
    output = done.output
    for line in (
        "data: validate and publish the sample", "rows of 15 partitions published, 0 in quarantine",
        "train: train and evaluate", "gate ok", "promote: make it champion", "version 1 is champion",
        "score: predict", "120 predictions by version 1", "monitor: write", "verdict: ",
        "partition_date", "5 of 120 predictions of 2024-01-12..2024-01-13, 2024-01-15",
        f"/#/models/{name}/versions/1", "Report: ", f"landing/{name}/{{date}}.parquet",
        f"perennial run score --model {name} --start 2024-01-12 --end 2024-01-15",
        f"perennial predictions {name} --start 2024-01-12 --end 2024-01-15",
    ):  # fmt: skip
        assert line in output, f"{line!r} is not in:\n{output}"
    assert delta_tables.partitions(delta_tables.table_uri("predictions", name)) == [
        "2024-01-12",
        "2024-01-13",
        "2024-01-15",
    ]
    promoted = [r for r in ledger.records(name) if r["decision"] == "promoted"]
    assert [r["actor"] for r in promoted] == ["gate"]


@pytest.mark.slow
def test_a_model_that_does_not_pass_is_not_scored_and_says_what_to_do(
    mlflow_home: Path, tmp_path: Path
) -> None:
    name = toys.unique("noise")
    done = new(name, sample(tmp_path / "noise.parquet", learnable=False), "--yes", "--run")
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit), "no error: the folder is complete, the gate refused"
    for line in (
        "Version 1 was not promoted, and nothing is scored:", "What to do next:",
        f"/#/models/{name}/versions/1", "gate.beat_baseline",
        f"perennial run train --model {name} --as-of 2024-01-15 --force", "The same by hand:",
    ):  # fmt: skip
        assert line in done.output, f"{line!r} is not in:\n{done.output}"
    assert delta_tables.partitions(delta_tables.table_uri("predictions", name)) == []
    assert catalog.load_model_by_name(name).name == name


def test_without_mlflow_the_data_is_published_and_the_rest_is_left(empty_home: Path, tmp_path: Path) -> None:
    done = new("orders", sample(tmp_path / "orders.parquet"), "--yes", "--run")
    assert done.exit_code == 1
    assert "MLflow at http://127.0.0.1:9 does not answer" in str(done.exception)
    assert "make start" in str(done.exception)
    assert "600 rows of 15 partitions published" in done.output
    rest = done.output.split("To continue:")[1]
    assert [line.split("  #")[0].split()[2] for line in rest.splitlines() if "perennial run" in line] == [
        "train", "promote", "score", "monitor",
    ]  # fmt: skip
    assert (tmp_path / "models" / "orders" / "model.yaml").is_file()


def test_a_file_that_cannot_be_published_ends_the_run(empty_home: Path, tmp_path: Path) -> None:
    path = sample(tmp_path / "orders.parquet")
    assert new("orders", path, "--yes").exit_code == 0
    landed = empty_home / "landing" / "orders" / "2024-01-03.parquet"
    landed.write_bytes(b"PAR1 is not all of it")
    with pytest.raises(PerennialError, match="2024-01-03"):
        first_run.run(catalog.load_model_by_name("orders"), "2024-01-01", "2024-01-15")


def test_dates_without_a_file_do_not_end_the_run(
    empty_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new("orders", sample(tmp_path / "orders.parquet", gap=True), "--yes").exit_code == 0
    with pytest.raises(PerennialError, match="MLflow"):
        first_run.run(catalog.load_model_by_name("orders"), "2024-01-01", "2024-01-15")
    assert "520 rows of 15 partitions published" in capsys.readouterr().out


def test_nothing_runs_unless_it_is_wanted(empty_home: Path, tmp_path: Path) -> None:
    path = sample(tmp_path / "orders.parquet")
    cases: list[tuple[tuple[str, ...], bool, str]] = [
        (("--yes",), False, "Next:"),
        (("--yes", "--no-run"), False, "Next:"),
        (("--yes", "--no-land"), False, "Next:"),
    ]
    for i, (arguments, runs, expected) in enumerate(cases):
        done = new(f"orders{i}", path, *arguments)
        assert done.exit_code == 0, done.output
        assert expected in done.output
        assert ("data: validate" in done.output) == runs
    done = new("orders3", path, "--yes", "--no-land", "--run")
    assert "2024-01-01.parquet has not landed: there is nothing to run" in str(done.exception)
    assert (tmp_path / "models" / "orders3" / "model.yaml").is_file()


@pytest.mark.parametrize(("answer", "runs"), [("y", True), ("n", False), ("", True)])
def test_it_is_offered(
    empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, runs: bool
) -> None:
    new("orders", sample(tmp_path / "orders.parquet"), "--yes")
    calls: list[str] = []

    def run(*_: object) -> first_run.FirstRun:
        calls.append("run")
        return first_run.FirstRun(first_run.plan("2024-01-01", "2024-01-15"), succeeded=True)

    monkeypatch.setattr(first_run, "run", run)
    monkeypatch.setattr("typer.confirm", lambda *_, default: {"y": True, "n": False, "": default}[answer])
    folder = tmp_path / "models" / "orders"
    assert first_run.offer(folder, "2024-01-01", "2024-01-15", None, ask=True)
    assert calls == (["run"] if runs else [])


@pytest.mark.parametrize("last", ["2024-01-01", "2024-01-15"])
def test_each_command_has_the_options_of_its_step(last: str) -> None:
    for step in first_run.plan("2024-01-01", last):
        declared = STEP_COMMANDS[step.name]
        assert {*step.arguments} <= {*declared.required, *declared.optional}
        assert {*declared.required} <= {*step.arguments}
        assert {*step.arguments} <= {*dispatch.parameter_names(step.name)}
        words = shlex.split(step.command("toy"))
        assert words[:5] == ["perennial", "run", step.name, "--model", "toy"]
        assert words[6::2] == [*step.arguments.values()]


def trained(improvement: float, low: float, *, failed: bool = True) -> dict[str, Any]:
    sentence = "log_loss 0.7, constant 0.6: improvement, must be above 0"
    return {
        "version": "3",
        "rows": {"fit": 10, "valid": 5, "holdout": 7},
        "gate": {
            "reasons": [f"{'FAILED' if failed else 'ok'}: {sentence}", "ok: there is no champion"],
            "against_baselines": {"constant": {"improvement": improvement, "low": low}},
        },
    }


@pytest.mark.parametrize(
    ("improvement", "low", "advice"),
    [(0.1, -0.1, "More rows"), (-0.1, -0.2, "Other features, or another label"), (0.1, 0.05, "Look at")],
)
def test_the_advice_fits_the_reason(
    empty_home: Path, tmp_path: Path, improvement: float, low: float, advice: str
) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    lines = [*first_run._advice(spec, "2024-01-15", trained(improvement, low), "the reason")]
    after = lines[lines.index("What to do next:") + 1]
    assert advice in after
    assert lines[1] == "  - log_loss 0.7, constant 0.6: improvement, must be above 0"
    again = [*first_run._advice(spec, "2024-01-15", trained(0.1, 0.1, failed=False), "the champion is now 2")]
    assert again[1] == "  - the champion is now 2"
