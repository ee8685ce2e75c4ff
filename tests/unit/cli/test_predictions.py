"""`perennial predictions`: prints and exports what was scored, for any names and types of key columns."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from perennial.cli import predictions
from perennial.cli.app import app
from perennial.core import dates
from perennial.core.errors import DataError, PerennialError, StorageError
from perennial.ingestion import table_definitions
from perennial.spec.model_spec import ModelSpec
from support import toys

FIRST, LAST = "2024-01-05", "2024-01-07"
TASKS = ("binary", "multiclass", "regression", "ranking")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["predictions", *map(str, arguments)])


def scored(spec: ModelSpec, day: str, rows: int = 3, **key: list[Any]) -> list[float]:
    """Write predictions, or published rows, as a step does; returns the predictions."""
    keys = key or {"id": [f"{day}-{i}" for i in range(rows)]}
    values = [i / 8 for i in range(rows)]
    classes = pa.array([f"class {i}" for i in range(rows)])
    column = spec.lake_column
    table: dict[str, Any] = keys | {
        column("prediction"): classes if spec.task == "multiclass" else pa.array(values, pa.float32())
    }
    if spec.task == "multiclass":
        table[column("probabilities")] = pa.array(
            [[1 - v, v / 2, v / 2] for v in values], pa.list_(pa.float32())
        )
    table |= {
        column("model_version"): ["7"] * rows,
        column("run_id"): ["r"] * rows,
        "partition_date": [day] * rows,
    }
    writer = table_definitions.writer_of(spec, "predictions")
    writer.replace(pa.table(table), day)
    return values


@pytest.fixture
def spec(empty_home: Path, tmp_path: Path) -> ModelSpec:
    return toys.model(tmp_path / "models", "toy")


@pytest.mark.parametrize("task", TASKS)
def test_predictions_of_each_task_are_printed_and_exported(
    empty_home: Path, tmp_path: Path, task: str
) -> None:
    spec = toys.model(tmp_path / "models", "toy", task)
    for day in dates.dates(FIRST, LAST):
        values = scored(spec, day)
    printed = run("toy")
    assert printed.exit_code == 0, printed.output
    assert f"3 of 3 predictions of {LAST}" in printed.output
    assert predictions.MEANING[task] in printed.output
    lines = [line.split() for line in printed.output.splitlines() if line.startswith(LAST)]
    assert [line[1] for line in lines] == [f"{LAST}-{i}" for i in range(3)]
    expected: dict[str, Any] = {
        "partition_date": [LAST] * 3,
        "id": [f"{LAST}-{i}" for i in range(3)],
        "prediction": [f"class {i}" for i in range(3)] if task == "multiclass" else values,
    }
    if task == "multiclass":
        expected["probability"] = [1 - value for value in values]
    expected["model_version"] = ["7"] * 3
    for name in ("out.parquet", "out.csv"):
        assert run("toy", "--date", LAST, "--out", tmp_path / name).exit_code == 0
    assert pq.read_table(tmp_path / "out.parquet").to_pydict() == expected
    types = {"model_version": pa.string(), "partition_date": pa.string()}
    options = pyarrow.csv.ConvertOptions(column_types=types)
    assert pyarrow.csv.read_csv(tmp_path / "out.csv", convert_options=options).to_pydict() == expected, (
        "the same"
    )


def test_a_range_in_order_and_in_chunks(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = dates.dates(FIRST, LAST)
    for i, day in enumerate(days):
        scored(spec, day, rows=5 + i)
    monkeypatch.setattr(predictions, "CHUNK_ROWS", 2)
    ids = [f"{day}-{j}" for i, day in enumerate(days) for j in range(5 + i)]
    cases: list[tuple[list[str], list[str]]] = [
        (["--start", FIRST], ids),
        (["--start", FIRST, "--end", days[1]], ids[:11]),
        (["--end", days[1]], ids[:11]),
        (["--start", "2023-01-01", "--end", "2025-01-01", "--limit", "7"], ids[:7]),
        (["--start", FIRST, "--limit", "1000"], ids),
        (["--date", days[1]], ids[5:11]),
        ([], ids[11:]),
    ]
    for arguments, expected in cases:
        assert run("toy", *arguments, "--out", tmp_path / "p.parquet").exit_code == 0
        assert pq.read_table(tmp_path / "p.parquet")["id"].to_pylist() == expected, arguments
    printed = run("toy", "--start", FIRST, "--limit", 4).output
    assert f"4 of 18 predictions of {FIRST}..{LAST}; --limit shows more" in printed
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("2024")] == ids[:4]


def test_key_columns_of_any_name_and_type(empty_home: Path, tmp_path: Path) -> None:
    key: dict[str, tuple[str, list[Any]]] = {
        "prediction": ("string", ['é,\n"x"', "[b]"]),
        "Probability": ("integer", [-(2**62), 2**62]),
        'a "quoted", [name]': ("date", [dt.date(1, 1, 1), dt.date(9999, 12, 31)]),
        "model_version": ("timestamp", [dt.datetime(2024, 1, 1, 1, 2, 3, 4)] * 2),
        "order": ("boolean", [True, False]),
    }
    columns = {name: kind for name, (kind, _) in key.items()}
    spec = toys.model(
        tmp_path / "models", "toy",
        data={"key": list(key), "columns": toys.content("toy")["data"]["columns"] | columns},
        label={"columns": columns | {"y": "integer"}},
    )  # fmt: skip
    scored(spec, FIRST, 2, **{name: values for name, (_, values) in key.items()})
    printed = run("toy")
    assert printed.exit_code == 0, printed.output
    assert 'a "quoted", [name]' in printed.output
    for name in ("p.parquet", "p.csv"):
        result = run("toy", "-o", tmp_path / name)
        assert result.exit_code == 0, (result.output, result.exception)
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.column_names == ["partition_date", *key, "__prediction", "__model_version"]
    assert {name: table[name].to_pylist() for name in key} == {n: values for n, (_, values) in key.items()}
    types = {name: table.schema.field(name).type for name in table.column_names}
    again = pyarrow.csv.read_csv(
        tmp_path / "p.csv",
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types),
    )
    assert again.to_pylist() == table.to_pylist()


def test_what_is_not_scored_is_named_with_its_command(spec: ModelSpec) -> None:
    with pytest.raises(DataError, match=r"no partition is scored yet\n.*`perennial missing toy`"):
        predictions.show(spec)
    toys.publish(spec, FIRST, 4)
    with pytest.raises(
        DataError, match=rf"score them: perennial run score --model toy --start {FIRST}.*champion"
    ):
        predictions.show(spec, day=FIRST)
    for day in (FIRST, "2024-01-08"):
        scored(spec, day)
    message = (
        r"there are no predictions of 2024-01-06; there are predictions of 2024-01-05, 2024-01-08\n.*"
        r"score them: perennial run score --model toy --start 2024-01-06$"
    )
    with pytest.raises(DataError, match=message):
        predictions.show(spec, day="2024-01-06")
    with pytest.raises(
        DataError, match=r"of 2024-02-01\.\.the latest.*\n.*published are 2024-01-05\.\.2024-01-08"
    ):
        predictions.show(spec, start="2024-02-01")
    printed = run("toy", "--start", FIRST).output
    assert "6 of 6 predictions of 2024-01-05, 2024-01-08" in printed
    assert (
        "Published and not scored: 2024-01-06..2024-01-07. To score: "
        "perennial run score --model toy --start 2024-01-06 --end 2024-01-07"
    ) in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--date", "yesterday"], "--date is 'yesterday', not a date"),
        (["--start", "2024-1-5"], "--start is '2024-1-5', not a date"),
        (["--start", LAST, "--end", FIRST], "is before start"),
        (["--date", FIRST, "--end", LAST], "--date is one partition"),
        (["--limit", "0"], "--limit is 0"),
        (["--out", "p.xlsx"], "neither .csv nor .parquet"),
        (["--out", "/nowhere/p.csv"], "a folder that does not exist"),
        (["--out", "s3://bucket/p.csv"], "this machine only"),
    ],
)
def test_options_that_cannot_be_used(spec: ModelSpec, arguments: list[str], message: str) -> None:
    scored(spec, FIRST)
    result = run("toy", *arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, PerennialError)
    assert message in str(result.exception)
    assert "nothing" in str(run("nothing").exception)


def test_a_failed_export_leaves_the_old_file(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "export"
    out.mkdir()
    scored(spec, FIRST)
    assert run("toy", "-o", out / "p.csv").exit_code == 0
    before = (out / "p.csv").read_bytes()

    def interrupted(*_: object) -> Iterator[pa.Table]:
        yield pa.table({"id": ["1"]})
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predictions, "_chunks", interrupted)
    with pytest.raises(StorageError, match=r"export/p\.csv"):
        predictions.show(spec, out=out / "p.csv")
    assert (out / "p.csv").read_bytes() == before
    assert [path.name for path in out.iterdir()] == ["p.csv"]
