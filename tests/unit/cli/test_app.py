"""The command line: what it prints, how it ends, and how errors are shown."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from perennial.cli import _step_commands
from perennial.cli.app import app
from perennial.core import runtime
from perennial.core.errors import PerennialError
from perennial.core.settings import ROOT
from perennial.ingestion import table_definitions
from perennial.spec import catalog
from perennial.steps import dispatch
from perennial.storage import delta_tables, ledger
from perennial.storage.ledger import Decision, LedgerKind

BROKEN = Path(__file__).parents[1] / "spec" / "broken"


def call(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=stdin)


def process(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """As a person or a pod calls it."""
    return subprocess.run(
        [sys.executable, "-m", "perennial", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "include")},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def toy(empty_home: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "toy"
    folder.mkdir(parents=True)
    shutil.copy(BROKEN / "model.yaml", folder)
    (folder / "features.sql").write_text("SELECT id, x FROM rows")
    (folder / "expectations.json").write_text('{"name": "toy", "expectations": []}')
    return folder


def test_check_is_good_and_says_what_it_did_not_check(toy: Path) -> None:
    done = call("check")
    assert done.exit_code == 0, done.output
    assert "flight_context" in done.output
    assert "no partition has landed here" in done.output
    assert "reference table planes, weather has not landed" in done.output


def test_strict_check_counts_what_was_not_checked(toy: Path) -> None:
    assert call("check", "--strict").exit_code == 1


def test_check_names_file_and_line(toy: Path) -> None:
    (toy / "features.sql").write_text("SELECT id,\n  [z] AS y\nFROM rows")
    done = call("check", "toy")
    assert done.exit_code == 1
    assert f"{toy}/features.sql:2: " in done.output
    assert "1 problem" in done.output
    assert "flight_late" not in done.output


def test_check_tries_the_expectations(toy: Path) -> None:
    entries = [
        '{"type": "unexpected_rows_expectation", "kwargs": {"unexpected_rows_query": "SELECT y FROM {batch}"}}',
        '{"type": "expect_column_type_to_be", "kwargs": {"column": "id", "type_": "VARCHAR(10)"}}',
        '{"type": "expect_column_values_to_match_regex", "kwargs": {"column": "id", "regex": "a{5000}"}}',
    ]
    text = ",\n".join(entries)
    (toy / "expectations.json").write_text(f'{{"name": "toy", "expectations": [\n{text}]}}')
    done = call("check", "toy")
    assert done.exit_code == 1
    lines = done.output.replace("\n", "")
    assert f"{toy}/expectations.json:2: unexpected_rows_query: " in lines and '"y" not found' in lines
    assert (
        f"{toy}/expectations.json:3: expect_column_type_to_be: " in lines
        and "Unrecognized pandas type" in lines
    )
    assert f"{toy}/expectations.json:4: expect_column_values_to_match_regex: regex 'a{{5000}}'" in lines


def test_check_of_an_unknown_model(toy: Path) -> None:
    done = process("check", "toi")
    assert done.returncode == 1
    assert "did you mean toy?" in done.stderr
    assert "Traceback" not in done.stderr


def test_markup_in_a_message_is_shown_as_it_is(toy: Path) -> None:
    path = toy / "model.yaml"
    path.write_text(path.read_text() + "monitoring: {persistence: [9, 2]}\n")
    assert "persistence is [9, 2]" in call("check", "toy").output


def test_why_explains_a_decision(toy: Path) -> None:
    assert "there is no decision on a retraining up to this date" in str(
        call("why", "toy", "2024-02-01").exception
    )
    ledger.append(
        "toy", kind=LedgerKind.RETRAINING, decision=Decision.DECLINED, reason="the verdict is ok", actor="scheduler",
        partition="2024-02-01", model_version="3",
        evidence={"signals": {"skew": {"state": "bad", "reason": "2 differ"}}},
    )  # fmt: skip
    output = call("why", "toy", "2024-02-01").output
    assert "2024-02-01: no retraining was requested (version 3)." in output
    assert "Because: the verdict is ok" in output and "skew: BAD: 2 differ" in output


def test_help_and_errors_come_without_heavy_libraries() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from perennial.cli.app import app; "
        "CliRunner().invoke(app, ['--help']); CliRunner().invoke(app, ['models']); "
        "print([m for m in ('pandas', 'numpy', 'duckdb', 'pyarrow', 'xgboost', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "include")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_check_loads_no_more_than_it_needs(toy: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from perennial.cli.app import app; "
        "assert CliRunner().invoke(app, ['check']).exit_code == 0; "
        "print([m for m in ('xgboost', 'mlflow', 'great_expectations', 'evidently') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "include")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_run_prints_its_result_last(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def run(step: str, spec: object, **arguments: object) -> dict[str, object]:
        calls.append((step, getattr(spec, "name", ""), arguments))
        print("a library talks")
        return {"status": "published", "partitions": ["2024-01-01"]}

    monkeypatch.setattr(dispatch, "run", run)
    done = call("run", "data", "-m", "toy", "--start", "2024-01-01", "--force")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1]) == {"status": "published", "partitions": ["2024-01-01"]}
    assert calls == [("data", "toy", {"start": "2024-01-01", "force": True})]


def test_run_says_who_decides(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments_of_step: dict[str, object] = {}
    monkeypatch.setattr(
        dispatch, "run", lambda step, spec, **arguments: arguments_of_step.update(arguments) or {}
    )
    assert call("run", "decide", "-m", "toy", "--as-of", "2024-01-07").exit_code == 0
    assert arguments_of_step["backfill"] is False
    assert str(arguments_of_step["actor"]).endswith("(command line)")
    options = ("--reason", "bad nights", "--to-version", "3", "--actor", "me")
    assert call("run", "rollback", "-m", "toy", *options).exit_code == 0
    assert (arguments_of_step["to_version"], arguments_of_step["actor"]) == ("3", "me")


#: A value of each option that takes one; the others are flags.
VALUES = {
    "start": "2024-01-01", "end": "2024-01-02", "as_of": "2024-01-07", "reason": "bad nights", "actor": "me",
    "to_version": "3", "workers": "2", "rendezvous": "/tmp/r.json", "run_id": "r1", "run_url": "http://airflow/runs/r1",
    "version": "2", "request": "0" * 16,
}  # fmt: skip


@pytest.mark.parametrize("step", dispatch.STEPS)
def test_a_step_takes_every_option_that_its_help_offers(
    step: str, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = dispatch.load_step(step)
    parameters = inspect.signature(function).parameters
    given: dict[str, Any] = {}

    @functools.wraps(function)
    def record(spec: object, **arguments: Any) -> dict[str, Any]:
        given.update(arguments)
        return {}

    monkeypatch.setattr(dispatch, "load_step", lambda _: record)
    declared = _step_commands.STEP_COMMANDS[step]
    assert {*declared.required, *declared.optional} == set(dispatch.parameter_names(step))
    without_default = {n for n, p in parameters.items() if p.default is p.empty} - {
        "spec",
        "actor",
        "backfill",
    }
    assert set(declared.required) == without_default

    monkeypatch.setenv("COLUMNS", "200")  # the table of options is not cut off
    offered = set(re.findall(r"--([a-z-]+)", call("run", step, "--help").output)) - {"help", "start"}
    offered |= {"start"} & {name.replace("_", "-") for name in declared.required}
    common = {"model", "spec-file", "result-file", "library-digest"}
    assert offered - common == {n.replace("_", "-") for n in dispatch.parameter_names(step)}
    words = ["run", step, "-m", "toy"]
    required = [w for n in declared.required for w in (f"--{n.replace('_', '-')}", VALUES[n])]
    assert call(*words, *required).exit_code == 0
    for name in declared.optional:
        given.clear()
        option = [f"--{name.replace('_', '-')}", *([VALUES[name]] if name in VALUES else [])]
        done = call(*words, *required, *option)
        assert done.exit_code == 0, (name, done.output)
        assert str(given[name]) == VALUES.get(name, "True")
    for name in declared.required:
        done = call(*words)
        assert done.exit_code == 2 and f"--{name.replace('_', '-')}" in done.output


def test_only_steps_are_commands_of_run() -> None:
    assert tuple(_step_commands.STEP_COMMANDS) == dispatch.STEPS
    assert "No such command 'bake'" in call("run", "bake").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "--start", "2024-01-01"], "no model is given"),
        (["data", "-m", "nope", "--start", "2024-01-01"], "there is no model called 'nope'"),
        (["data", "-m", "toy", "--start", "01.02.2024"], "start is '01.02.2024', not a date"),
        (["data", "-m", "toy", "--start", "2024-01-01"], "has not landed"),
        (["rollback", "-m", "toy", "--reason", " "], "--reason is empty"),
        (["decide", "-m", "toy", "--as-of", "2024-01-07", "--actor", " "], "--actor is empty"),
        (["promote", "-m", "toy", "--as-of", "2024-01-07"], "there is no finished training"),
        (["decide", "-m", "toy", "--as-of", "2024-01-07"], "there is no verdict to decide on"),
        (["score", "--start", "2024-01-01", "--spec-file", "/nowhere.json"], "/nowhere.json cannot be read"),
    ],
)  # fmt: skip
def test_run_shows_errors_without_a_traceback(toy: Path, arguments: list[str], message: str) -> None:
    done = process("run", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "What to do" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_exit_status_tells_what_time_may_heal(toy: Path) -> None:
    done = process(
        "run", "rollback", "-m", "toy", "--reason", "bad nights"
    )  # nothing listens at MLflow's address
    assert done.returncode == 75
    assert "does not answer" in done.stderr


def test_a_pod_gets_the_spec_with_the_call(
    toy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = catalog.load_model_by_name("flight_late")
    specs = []
    monkeypatch.setattr(dispatch, "run", lambda step, given, **_: specs.append(given) or {})
    bundle = json.dumps(spec.bundle())
    assert call("run", "score", "--spec-file", "-", "--start", "2013-01-01", stdin=bundle).exit_code == 0
    path = tmp_path / "bundle.json"
    path.write_text(bundle)
    assert (
        call("run", "score", "--spec-file", str(path), "-m", "flight_late", "--start", "2013-01-01").exit_code
        == 0
    )
    named = tmp_path / f"{hashlib.sha256(bundle.encode()).hexdigest()}.json"
    named.write_text(bundle)
    assert call("run", "score", "--spec-file", str(named), "--start", "2013-01-01").exit_code == 0
    named.write_text(bundle.replace("flight_late", "flight_latt"))
    changed = call("run", "score", "--spec-file", str(named), "--start", "2013-01-01")
    assert "its name is not the digest of its content" in str(changed.exception)
    specs.pop()
    assert [s.digest for s in specs] == [spec.digest] * 2
    with pytest.raises(PerennialError, match="holds model flight_late, --model is toy"):
        raise (
            call("run", "score", "--spec-file", str(path), "-m", "toy", "--start", "2013-01-01").exception
            or AssertionError
        )


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"model": {"name": "x"}, "sql": "", "suite": "", "sets": []}']
)
def test_a_bundle_that_is_none(toy: Path, text: str) -> None:
    done = process("run", "score", "--spec-file", "-", "--start", "2013-01-01", stdin=text)
    assert done.returncode == 1
    assert "ModelSpec.bundle()" in done.stderr
    assert "Traceback" not in done.stderr


def test_models_lists_them(toy: Path) -> None:
    assert "flight_delay" in call("models").output
    rows = {row["name"]: row for row in json.loads(call("models", "--json").stdout)}
    assert rows["toy"]["digest"] == catalog.load_model_by_name("toy").digest


def test_models_goes_on_past_a_broken_one(toy: Path) -> None:
    (toy / "features.sql").unlink()
    done = process("models")
    assert done.returncode == 1
    assert "flight_delay" in done.stdout
    assert "features.sql is missing" in done.stderr


def test_ledger_is_shown_and_verified(toy: Path, empty_home: Path) -> None:
    assert "No decision about toy is recorded" in call("ledger", "toy").output
    for n in range(3):
        ledger.append(
            "toy",
            kind=LedgerKind.RETRAINING,
            decision=Decision.DECLINED,
            reason=f"[calm] {n}",
            actor="test",
            partition="2024-01-01",
        )
    done = call("ledger", "toy")
    assert done.exit_code == 0, done.output
    assert "3 records; the chain of hashes is intact." in done.output
    assert "[calm] 2" in done.output
    assert len(json.loads(call("ledger", "toy", "--json").stdout)) == 3


def test_a_ledger_that_was_tampered_with(
    toy: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        ledger.append(
            "toy", kind=LedgerKind.PROMOTION, decision=Decision.PROMOTED, reason=str(n), actor="test"
        )
    real = ledger.iterate
    monkeypatch.setattr(ledger, "iterate", lambda model: (r for r in real(model) if r["reason"] != "1"))
    done = call("ledger", "toy")
    assert done.exit_code == 1
    assert "was changed, or one before it is missing" in str(done.exception)


def test_the_digest_of_the_library_is_printed() -> None:
    assert call("library-digest").stdout.strip() == runtime.library_digest()


def test_schema_is_printed() -> None:
    assert json.loads(call("schema").stdout)["title"] == "ModelSpec"


def test_docs_check(empty_home: Path) -> None:
    assert call("docs", "--check").exit_code == 0


def test_interrupted_by_the_keyboard(toy: Path) -> None:
    """A step that waits ends at once, without a traceback."""
    import signal

    code = (
        "import sys; sys.argv = ['perennial', 'run', 'data', '-m', 'toy', '--start', '2024-01-01']\n"
        "from perennial.steps import dispatch\nimport time\n"
        "def wait(*a, **k):\n    print('waiting', flush=True); time.sleep(60)\n"
        "dispatch.run = wait\nfrom perennial.cli.app import main\nmain()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "include")},
        # Tests that a shell runs in the background ignore the interrupt, and so would the child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert child.returncode != 0
    assert "Traceback" not in errors


def test_a_new_generation_says_what_it_does_before_it_does_it(toy: Path) -> None:
    spec = catalog.load_model_by_name("toy")
    uri = delta_tables.table_uri("published", "toy")
    days = pa.array(["2024-01-01", "2024-01-02"])
    table_definitions.writer_of(spec, "published").replace(
        pa.table({"id": [7, 8], "partition_date": days}), "2024-01-01", "2024-01-02"
    )
    checked = call("check", "toy")
    assert checked.exit_code == 1, checked.output
    assert "column 'id' is integer in the table and string in the spec" in checked.output
    planned = call("new-generation", "toy")
    assert planned.exit_code == 0, planned.output
    assert "Nothing was changed" in planned.output
    assert "perennial run data --model toy --start 2024-01-01 --end 2024-01-02" in planned.output
    assert delta_tables.partitions(uri) == ["2024-01-01", "2024-01-02"]
    assert isinstance(call("new-generation", "toy", "--yes").exception, PerennialError)  # no reason
    done = call("new-generation", "toy", "--yes", "--reason", "codes have zeros")
    assert done.exit_code == 0, done.output
    assert delta_tables.partitions(uri) == []
    assert "codes have zeros" in call("ledger", "toy").output
    assert call("check", "toy").exit_code == 0
    assert "no table has to change" in str(call("new-generation", "toy").exception)
