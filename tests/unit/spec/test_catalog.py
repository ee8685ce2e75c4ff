"""Models and feature sets are found in every root; a broken one does not affect the others."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from perennial.cli.check import preflight
from perennial.core.errors import SpecError
from perennial.core.settings import ROOT
from perennial.spec import catalog, yaml_reader

GOOD = Path(__file__).parent / "broken" / "model.yaml"
SAMPLE = {"digits", "flight_delay", "flight_late"}


def write(root: Path, name: str = "toy", **replace: str) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    text = GOOD.read_text().replace("name: toy", f"name: {name}")
    for old, new in replace.items():
        text = text.replace(old, new)
    (folder / "model.yaml").write_text(text)
    (folder / "features.sql").write_text("SELECT id, x FROM rows")
    (folder / "expectations.json").write_text('{"name": "toy", "expectations": []}')
    return folder


@pytest.fixture
def roots(empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two more roots, searched in this order."""
    first, second = tmp_path / "first", tmp_path / "second root"
    monkeypatch.setenv("PERENNIAL_MODELS", f"{first}:{second}:{tmp_path / 'missing'}:")
    return first, second


def test_models_of_every_root_are_found(roots: tuple[Path, Path]) -> None:
    write(roots[0], "here")
    write(roots[1], "there")
    models, errors = catalog.load_models()
    assert errors == []
    assert set(models) == SAMPLE | {"here", "there"}
    assert models["there"].folder == roots[1] / "there"


def test_a_folder_without_a_spec_is_no_model(roots: tuple[Path, Path]) -> None:
    write(roots[0], "here")
    (roots[0] / "notes").mkdir()
    (roots[0] / ".new-0123" / "half").mkdir(parents=True)
    shutil.copy(GOOD, roots[0] / ".new-0123" / "half")
    assert set(catalog.find_folders()) == SAMPLE | {"here"}


def test_a_broken_model_is_one_error_and_no_other_models(roots: tuple[Path, Path]) -> None:
    write(roots[0], "good")
    (write(roots[0], "bad") / "features.sql").unlink()
    models, errors = catalog.load_models()
    assert set(models) == SAMPLE | {"good"}
    assert [e.model for e in errors] == ["bad"]
    assert "features.sql is missing" in str(errors[0])
    assert "What to do" in str(errors[0])


def test_two_of_one_name(roots: tuple[Path, Path]) -> None:
    """The first counts, the other is reported: it must not take the name over."""
    first, second = write(roots[0]), write(roots[1])
    models, errors = catalog.load_models()
    assert models["toy"].folder == first
    assert len(errors) == 1
    assert str(second) in str(errors[0])
    assert str(first) in str(errors[0])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"caf\xe9 \xc3\xa9\r\n", "caf\N{REPLACEMENT CHARACTER} \xe9\n"),
        (b"\xef\xbb\xbfA toy.", "A toy."),
        (b"ab" * 500_000, "ab" * 3999 + "a…"),
        ("é".encode() * 8000, "é" * 8000),
    ],
    ids=["latin-1", "mark", "large", "just fits"],
)
def test_no_readme_breaks_a_model(roots: tuple[Path, Path], content: bytes, expected: str) -> None:
    (write(roots[0]) / "README.md").write_bytes(content)
    models, errors = catalog.load_models()
    assert errors == [] and models["toy"].readme == expected


def test_unknown_model(roots: tuple[Path, Path]) -> None:
    with pytest.raises(SpecError, match="did you mean flight_late"):
        catalog.load_model_by_name("flight_lat")
    with pytest.raises(SpecError, match="there are: digits"):
        catalog.load_model_by_name("zzz")


def test_feature_sets_of_another_root(roots: tuple[Path, Path]) -> None:
    folder = write(roots[0])
    (folder / "model.yaml").write_text((folder / "model.yaml").read_text() + "features: {sets: [shared]}\n")
    shared = roots[1] / "shared"
    shared.mkdir(parents=True)
    (shared / "features.sql").write_text("SELECT *, x * 2 AS twice FROM rows")
    with pytest.raises(SpecError, match=r"features\.sets names 'shared'"):
        catalog.load_model_by_name("toy")
    (shared / "feature_set.yaml").write_text("name: shared\nowner: tests\ndescription: Doubles.\n")
    (folder / "features.sql").write_text("SELECT id, twice FROM rows")
    assert [s.name for s in catalog.load_model_by_name("toy").feature_sets] == ["shared"]
    (report,) = preflight.check(["toy"])
    assert (report.problems, report.features) == ([], 1)


def test_a_broken_feature_set_is_reported_with_file_and_line(roots: tuple[Path, Path]) -> None:
    for name in ("toy", "twin"):
        folder = write(roots[0], name)
        (folder / "model.yaml").write_text(
            (folder / "model.yaml").read_text() + "features: {sets: [shared]}\n"
        )
    shared = roots[0] / "shared"
    shared.mkdir()
    (shared / "feature_set.yaml").write_text("name: shared\nowner: tests\ndescription: Doubles.\n")
    (shared / "features.sql").write_text("SELECT *,\n  xx * 2 AS twice\nFROM rows")
    problems = [p for report in preflight.check() for p in report.problems]
    assert sum("shared/features.sql:2: " in p for p in problems) == 1
    assert any("see above" in p for p in problems)
    (shared / "feature_set.yaml").write_text("name: shared\nowner: tests\n")
    problems = [p for report in preflight.check() for p in report.problems]
    assert any("shared/feature_set.yaml:1: description: is missing" in p for p in problems)


def test_paths_are_shown_below_the_checkout() -> None:
    assert yaml_reader.display_path(ROOT / "include" / "models" / "digits") == "include/models/digits"
    assert yaml_reader.display_path(Path("/elsewhere/digits")) == "/elsewhere/digits"
    assert yaml_reader.key_location(ROOT / "include" / "models" / "digits" / "model.yaml", "task") == (
        "include/models/digits/model.yaml:3"
    )


def test_the_sample_is_good(empty_home: Path) -> None:
    reports = {r.name: r for r in preflight.check()}
    assert SAMPLE | {"flight_context"} <= set(reports)
    assert [p for r in reports.values() for p in r.problems] == []


def test_every_folder_of_the_sample_has_a_readme() -> None:
    for name, folder in (catalog.find_folders() | catalog.find_folders("feature_set.yaml")).items():
        if folder.is_relative_to(ROOT):
            text = (folder / "README.md").read_text("utf-8")
            assert text.startswith(f"# {name}\n"), f"{folder}/README.md does not begin with its name"


def landed(empty_home: Path, kind: str, **columns: object) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = empty_home / "landing" / kind / "2024-01-03.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_what_landed_is_compared_with_what_is_declared(empty_home: Path, roots: tuple[Path, Path]) -> None:
    import datetime as dt

    write(roots[0])
    n = 20
    rows: dict[str, object] = {
        "id": [f"k{i}" for i in range(n)], "seen_at": [dt.datetime(2024, 1, 3, 1)] * n, "x": [0.5] * n,
        "shop": ["a"] * n, "who": [f"Person {i}" for i in range(n)],
    }  # fmt: skip
    landed(empty_home, "toy", **rows)
    landed(empty_home, "labels", id=rows["id"], y=[1] * n)
    (report,) = preflight.check(["toy"])
    assert (report.problems, report.tried) == ([], "20 landed rows")
    landed(empty_home, "toy", **(rows | {"x": ["text"] * n}))
    landed(empty_home, "labels", id=rows["id"], why=[1] * n)
    (report,) = preflight.check(["toy"])
    assert any(
        "model.yaml:10: " in p
        and "column 'x' is declared number; the file has string, and none of its first 20 values can be read"
        in p
        for p in report.problems
    )
    assert any("model.yaml:20: " in p and "column 'y' (integer) is missing" in p for p in report.problems)


def test_no_personal_value_is_shown(empty_home: Path, roots: tuple[Path, Path]) -> None:
    import datetime as dt

    folder = write(roots[0])
    (folder / "features.sql").write_text("SELECT id, who::INTEGER AS x FROM rows")
    reason = "features: {personal: {x: a test needs it}}\n"
    (folder / "model.yaml").write_text((folder / "model.yaml").read_text() + reason)
    n = 20
    landed(empty_home, "toy", id=[f"k{i}" for i in range(n)], seen_at=[dt.datetime(2024, 1, 3, 1)] * n, x=[0.5] * n,
           shop=["a"] * n, who=[f"Person {i}" for i in range(n)])  # fmt: skip
    (report,) = preflight.check(["toy"])
    assert "Conversion Error: a value cannot be converted, to INT32" in report.problems[0]
    assert "Person" not in str(report)


@pytest.mark.parametrize(("kind", "noted"), [("number", True), ("integer", False)])
def test_a_key_that_is_a_number_is_noted(
    empty_home: Path, roots: tuple[Path, Path], kind: str, noted: bool
) -> None:
    folder = write(roots[0])
    path = folder / "model.yaml"
    path.write_text(re.sub(r"\bid: string", f"id: {kind}", path.read_text()))
    (report,) = preflight.check(["toy"])
    assert f"id: {kind}" in path.read_text()
    assert any("integers above 2^53" in note and "'id'" in note for note in report.notes) == noted
