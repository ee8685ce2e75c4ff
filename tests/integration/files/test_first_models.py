"""Files of other people become models: from the file to predictions, as good as a few lines of plain XGBoost."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from bench import files
from perennial.cli.app import app
from perennial.storage import delta_tables, manifests
from support.feeds.sample_files import FILES, SampleFile

pytestmark = pytest.mark.slow


def run(*arguments: str) -> str:
    """Run the command line in this process."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"perennial {' '.join(arguments)}: {result.exception!r}\n{result.output}"
    return result.output


@pytest.fixture
def small_home(mlflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder; pages for people, most of the data step's time, are not drawn."""
    monkeypatch.setattr("perennial.ingestion.data_profile.write_profile", lambda *_: "")
    return mlflow_home


@pytest.mark.parametrize("file", [f for f in FILES if not f.large], ids=lambda f: f.name)
def test_a_file_becomes_a_model_as_good_as_plain_xgboost(
    file: SampleFile, small_home: Path, tmp_path: Path
) -> None:
    files.create_and_run(file.name, file.write(tmp_path), file.label, run)
    rows = delta_tables.rows_by_partition(delta_tables.table_uri("published", file.name))
    data = manifests.read_all(file.name, "data", manifests.finished(file.name, "data"))
    assert sum(m.rows_in for m in data.values()) == sum(rows.values()) + sum(
        m.quarantined for m in data.values()
    )
    run("run", "score", "--model", file.name, "--start", min(rows), "--end", max(rows))
    run("predictions", file.name, "--start", min(rows), "--out", str(tmp_path / "predictions.parquet"))
    predictions = pq.read_table(tmp_path / "predictions.parquet")
    assert predictions.num_rows == sum(rows.values())
    assert predictions.column("prediction").null_count == 0
    compared = files.compare(file.name)
    assert compared["passed"] and compared["ratio"] <= 1.02, compared
