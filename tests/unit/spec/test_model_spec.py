"""The error about each folder of `broken/` names file, line, key, the value received and what is allowed."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from perennial.cli import spec_reference
from perennial.cli.check import preflight
from perennial.core.durations import Duration
from perennial.core.errors import SpecError
from perennial.core.partitions import Cadence, Unit, Weekday
from perennial.spec import _renamed_keys, catalog
from perennial.spec.constraints import MIN_BASELINE_PARTITIONS, PARAMETER_BOUNDS, check_schedule
from perennial.spec.model_spec import ModelSpec
from perennial.spec.text_format import TextFormatSpec

BROKEN = Path(__file__).parent / "broken"
SQL = "SELECT id, x FROM rows\n"
SUITE = """{"name": "toy", "expectations": [
  {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "id"}, "meta": {}}]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good model folder called ``toy``, in a root that is searched; nothing has landed."""
    for name in ("PERENNIAL_LAKE", "PERENNIAL_LANDING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path / "models"))
    folder = tmp_path / "models" / "toy"
    folder.mkdir(parents=True)
    shutil.copy(BROKEN / "model.yaml", folder)
    (folder / "features.sql").write_text(SQL)
    (folder / "expectations.json").write_text(SUITE)
    return folder


def break_it(folder: Path, case: str) -> list[str]:
    """Apply one file of `broken/`; returns what the message must say."""
    text = (BROKEN / f"{case}.txt").read_text("utf-8")
    match = re.fullmatch(r"=== (\S+)( \(removed\))?\n(.*)=== expect\n(.*)", text, re.DOTALL)
    assert match, f"{case}.txt is not written as broken/README.md says"
    name, removed, body, expected = match.groups()
    path = folder / name
    if removed:
        path.unlink()
    elif body.startswith("+++\n"):
        path.write_text(path.read_text() + body.removeprefix("+++\n"))
    elif re.match(r"s[/#]", body):
        content = path.read_text()
        for line in body.splitlines():
            old, new = line[2:-1].replace("⏎", "\n").split(line[1])
            assert old in content, f"{case}.txt: {old!r} is not in the good file"
            content = content.replace(old, new)
        path.write_text(content)
    else:
        path.write_text(body)
    return expected.splitlines()


def problems(names: tuple[str, ...] = ("toy",)) -> str:
    return "\n".join(p for report in preflight.check(names) for p in report.problems)


@pytest.mark.parametrize("extra", [{}, {"header": False}, {"header": True, "unnamed": "id"}])
def test_a_stored_format_is_read_again(extra: dict[str, Any]) -> None:
    """Stored specs have all keys, those that are as by default, too."""
    text_format = TextFormatSpec.model_validate(extra)
    assert TextFormatSpec.model_validate(text_format.model_dump(mode="json")) == text_format


def test_the_good_folder_is_good(folder: Path) -> None:
    (report,) = preflight.check(["toy"])
    assert report.problems == []
    assert (report.features, report.expectations, report.tried) == (1, 1, "generated rows")
    assert any("no partition has landed" in note for note in report.notes)


@pytest.mark.parametrize("case", sorted(p.stem for p in BROKEN.glob("*.txt")))
def test_broken_folder(folder: Path, case: str) -> None:
    expected = break_it(folder, case)
    output = problems()
    assert expected
    for piece in expected:
        assert piece in output, f"\n{output}\n\nlacks {piece!r}"
    assert "Traceback" not in output
    assert (
        str(folder) in output or "toy/" in output or "reference table" in output or "features.sets" in output
    )


def test_no_python_is_run_by_a_tag(folder: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    path = folder / "model.yaml"
    path.write_text(path.read_text() + f'tags: !!python/object/apply:os.system ["touch {witness}"]\n')
    with pytest.raises(SpecError, match="could not determine a constructor"):
        catalog.load_model(folder)
    assert not witness.exists()


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00n\x00a", b"name: caf\xe9\n", b"name: \x00toy\n"],
    ids=["utf-16", "latin-1", "nul"],
)
def test_a_spec_that_is_no_text(folder: Path, content: bytes) -> None:
    (folder / "model.yaml").write_bytes(content)
    with pytest.raises(SpecError, match=r"model\.yaml.*(not UTF-8|not allowed|control characters)"):
        catalog.load_model(folder)


def test_a_byte_order_mark_does_no_harm(folder: Path) -> None:
    for name in ("model.yaml", "features.sql", "expectations.json"):
        path = folder / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert problems() == ""


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "a: " + "{a: " * 50_000, "- " * 100_000, "? " * 100_000],
    ids=["lists", "mappings", "items", "keys"],
)
def test_brackets_without_end(folder: Path, text: str) -> None:
    """libyaml's reader is recursive, and would take the DAG processor down with it."""
    (folder / "model.yaml").write_text(text)
    with pytest.raises(SpecError, match="nested more than 20 deep"):
        catalog.load_model(folder)


def test_a_spec_of_a_megabyte(folder: Path) -> None:
    path = folder / "model.yaml"
    path.write_text(path.read_text() + "# " + "x" * 1_000_000)
    with pytest.raises(SpecError, match="more than 262144 bytes"):
        catalog.load_model(folder)


def test_a_spec_that_may_not_be_read(folder: Path) -> None:
    path = folder / "model.yaml"
    path.unlink()
    path.mkdir()
    (errors,) = [catalog.load_models()[1]]
    assert any("cannot be read" in str(e) and "toy" in str(e) for e in errors)


def test_all_problems_are_reported_at_once(folder: Path) -> None:
    for case in ("unknown_key_far", "out_of_range", "suite_type"):
        break_it(folder, case)
    output = problems()
    assert "flavour" in output
    assert "monitoring.min_rows" in output


def test_on_and_no_are_words(folder: Path) -> None:
    """YAML 1.1 reads on, yes and no as booleans; a tag may be called on, and Norway's code is no."""
    path = folder / "model.yaml"
    path.write_text(path.read_text().replace("owner: tests", "owner: no") + "tags: [on, drift]\n")
    spec = catalog.load_model(folder)
    assert spec.owner == "no"
    assert spec.tags == ["on", "drift"]
    path.write_text(path.read_text().replace("personal: [who]", "personal: [who]\n  quarantine_limit: yes"))
    with pytest.raises(SpecError, match="received 'yes'"):
        catalog.load_model(folder)


def test_bundle_is_the_whole_model(folder: Path) -> None:
    import json

    for spec in (catalog.load_model(folder), catalog.load_model_by_name("flight_late")):
        again = ModelSpec.from_bundle(json.loads(json.dumps(spec.bundle())))
        assert again.model_dump() == spec.model_dump()
        assert again.digest == spec.digest
        assert [s.sql for s in again.feature_sets] == [s.sql for s in spec.feature_sets]


def test_a_spec_that_was_stored_with_the_old_names_is_read() -> None:
    """A champion of before an upgrade scores on."""
    spec = catalog.load_model_by_name("flight_late")
    bundle = spec.bundle()
    stored = bundle | {"model": copy.deepcopy(bundle["model"])}
    training, retraining, gate = (stored["model"][name] for name in ("training", "retraining", "gate"))
    assert (training.pop("window"), training.pop("holdout")) == ("90 days", "14 days")
    training |= {"window_days": 90, "holdout_days": 14}
    stored["model"]["label"]["arrives_after_days"] = 1
    del stored["model"]["label"]["arrives_after"]
    retraining["max_age_days"] = Duration.parse(retraining.pop("max_age")).count
    retraining["on"] = ["value", *retraining.pop("triggers")[1:]]
    gate["resample"] = gate.pop("bootstrap_unit")
    restored = ModelSpec.from_bundle(stored)
    assert restored.model_dump() == spec.model_dump() and restored.digest == spec.digest
    training["window_days"], gate["resample"] = None, "days"
    restored = ModelSpec.from_bundle(stored)
    assert (restored.training.window, restored.gate.bootstrap_unit) == (None, "partitions")
    assert stored["model"]["training"]["window_days"] is None, "what is stored stays as it is"


@given(
    st.lists(st.text(min_size=1) | st.sampled_from([".", "a.b", "x.window_days", "gate.resample", "1", "on"]))
)
def test_names_of_columns_are_no_keys(columns: list[str]) -> None:
    """The old names of keys are looked for in the spec alone, not among the columns, which may be called anything."""
    model = {
        "data": {
            "columns": dict.fromkeys(columns, "number"),
            "key": columns,
            "constraints": {c: {} for c in columns},
        },
        "features": {"categorical": columns},
        "monitoring": {"slices": columns},
    }
    assert _renamed_keys.upgrade(model) == model


def test_digest_follows_every_file(folder: Path) -> None:
    digests = {catalog.load_model(folder).digest}
    for name, old, new in (
        ("model.yaml", "y > 0", "y > 1"),
        ("features.sql", "x", "x + 1 AS x"),
        ("expectations.json", "toy", "toys"),
    ):
        path = folder / name
        path.write_text(path.read_text().replace(old, new))
        digests.add(catalog.load_model(folder).digest)
    assert len(digests) == 4


def test_generated_files_are_not_stale() -> None:
    """If this fails: `make docs`, and commit what it writes."""
    assert spec_reference.write(dry_run=True) == []


def test_schema_says_what_the_spec_says() -> None:
    import json

    schema = json.loads(spec_reference.schema())
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"name", "task", "owner", "description", "data", "label", "schedule"}
    sections = schema["$defs"]
    assert all(s.get("additionalProperties") is False for s in sections.values() if s["type"] == "object")
    lacking = [
        f"{n}.{k}"
        for n, s in sections.items()
        for k, v in s["properties"].items()
        if not v.get("description")
    ]
    assert lacking == []
    assert all(name in spec_reference.page() for name in PARAMETER_BOUNDS)


def test_specs_load_without_heavy_libraries() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from perennial.spec import catalog; catalog.load_models(); "
        "print([m for m in ('pandas', 'numpy', 'duckdb', 'pyarrow', 'xgboost', 'mlflow') if m in sys.modules])"
    )
    root = Path(__file__).parents[3] / "include"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_spec_has_one_digest_wherever_it_is_read(folder: Path) -> None:
    spec = catalog.load_model(folder)
    travelled = ModelSpec.from_bundle(json.loads(json.dumps(spec.bundle())))
    assert travelled.digest == spec.digest
    assert travelled.model_dump_json() == spec.model_dump_json()


@given(st.sampled_from(["hour", "week", "month"]), st.sampled_from(get_args(Weekday)), st.integers(0, 59),
       st.integers(0, 23), st.integers(0, 6), st.integers(1, 28), st.sampled_from(["UTC", "Asia/Kolkata"]))  # fmt: skip
@example("hour", "monday", 0, 0, 0, 1, "UTC")
@example("week", "monday", 0, 0, 1, 1, "UTC")
@example("month", "monday", 0, 0, 0, 1, "UTC")
def test_a_schedule_with_one_run_for_each_partition_is_accepted(
    every: Unit, weekday: Weekday, minute: int, hour: int, tick_weekday: int, day: int, zone: str
) -> None:
    """Also where it runs at the very moment at which a partition begins."""
    times = {"hour": "* * * *", "week": f"{hour} * * {tick_weekday}", "month": f"{hour} {day} * *"}
    check_schedule("schedule.data", f"{minute} {times[every]}", Cadence(every, weekday, zone), each=True)


@pytest.mark.parametrize(
    ("every", "held_out", "window", "cooldown"),
    [
        ("hour", 336, 672, "7 days"),
        ("day", 14, 28, "7 days"),
        ("week", 8, 8, "4 weeks"),
        ("month", 6, 3, "3 months"),
    ],
)
def test_default_durations_fit_the_length_of_a_partition(
    tmp_path: Path, every: str, held_out: int, window: int, cooldown: str
) -> None:
    source = {"hour": "{date}T{hour}", "month": "{year}-{month}"}.get(every, "{date}")
    cron = {"hour": "10 * * * *", "week": "0 2 * * 1", "month": "0 2 1 * *"}.get(every, "0 2 * * *")
    values = {
        "name": "toy", "task": "regression", "owner": "tests", "description": "For tests.",
        "data": {"source": f"{{landing}}/{source}.csv", "every": every, "key": ["id"],
                 "columns": {"id": "string", "y": "number"}},
        "label": {"expression": "y"}, "training": {"rounds": 5},
        "schedule": {"start": "2024-01-01", "data": cron, "monitor": cron},
    }  # fmt: skip
    spec = ModelSpec.model_validate(values)
    lengths = (spec.training.holdout, spec.monitoring.window)
    assert tuple(length.partitions(spec.cadence) for length in lengths) == (held_out, window)
    assert (str(spec.retraining.cooldown), spec.training.rounds) == (cooldown, 5)
    assert str(spec.retraining.regular) == (cooldown if every in ("week", "month") else "4 days")
    assert spec.training.holdout.partitions(spec.cadence) >= MIN_BASELINE_PARTITIONS
    changed = ModelSpec.model_validate(values | {"training": {"holdout": "9 partitions"}})
    assert changed.training.holdout.partitions(spec.cadence) == 9
    assert ModelSpec.model_validate_json(spec.model_dump_json()).digest == spec.digest
