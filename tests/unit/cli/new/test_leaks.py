"""What `perennial new` says about features that contain the label, and about a label that becomes known later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.spec import catalog

ROWS = 600


def table(label: Any, seed: int = 0, **columns: Any) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    days = pd.date_range("2024-03-01", periods=20).repeat(ROWS // 20)
    return pd.DataFrame(
        {"seen_on": days, "size": rng.normal(size=ROWS), "shade": rng.choice(["red", "blue"], ROWS), **columns,
         "outcome": label}
    )  # fmt: skip


def output(folder: Path, frame: pd.DataFrame, *arguments: str) -> str:
    frame.to_csv(folder / "sample.csv", index=False)
    done = CliRunner().invoke(
        app,
        ["new", "leaky", "--sample", str(folder / "sample.csv"), "--label", "outcome", "--yes", *arguments],
    )
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def labels(task: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    return {
        "binary": rng.integers(0, 2, ROWS),
        "multiclass": rng.choice(["low", "middle", "high"], ROWS),
        "regression": np.round(rng.normal(100, 15, ROWS), 3),
    }[task]


@pytest.mark.parametrize(
    ("task", "score"), [("binary", "AUC 1.000"), ("multiclass", "accuracy 1.000"), ("regression", "R² 0.99")]
)
def test_a_feature_that_is_the_label_in_other_words_is_named(
    empty_home: Path, tmp_path: Path, task: str, score: str
) -> None:
    y = labels(task)
    copy = {"regression": lambda: np.round(2 * y + 7, 2)}.get(task, lambda: [f"is {v}" for v in y])()
    said = output(tmp_path, table(y, paid_back=copy), "--task", task)
    assert f"'paid_back' alone predicts outcome almost perfectly ({score}" in said
    assert "'size' alone" not in said and "'shade' alone" not in said
    assert "paid_back" in catalog.load_model_by_name("leaky").sql, "it is not left out"


def test_a_label_made_of_two_columns_is_named(empty_home: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    casual, price = rng.poisson(40, ROWS), np.round(rng.gamma(2, 20, ROWS) + 1, 2)
    registered, quantity = rng.poisson(150, ROWS), rng.integers(1, 30, ROWS)
    columns = {"casual": casual, "registered": registered, "price": price, "quantity": quantity}
    said = output(tmp_path, table(casual + registered, **columns))
    assert f"outcome is 'casual' + 'registered' in all {ROWS} rows: are these columns known when" in said
    assert "'price'" not in said and "casual" in catalog.load_model_by_name("leaky").sql


def test_a_good_prediction_by_several_columns_is_no_leak(empty_home: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(50, 10, ROWS), rng.normal(50, 10, ROWS)
    said = output(tmp_path, table(np.round(a + b + rng.normal(0, 0.3, ROWS), 2), a=a, b=b))
    assert "no model is needed" not in said


@pytest.mark.parametrize("share", [0.5, 0.9, 0.97])
def test_a_label_that_is_a_threshold_of_a_column_is_named(
    empty_home: Path, tmp_path: Path, share: float
) -> None:
    delay = np.random.default_rng(2).gamma(2, 9, ROWS)
    said = output(tmp_path, table((delay > np.quantile(delay, share)).astype(int), delay=delay))
    assert "'delay' alone predicts outcome almost perfectly (AUC" in said


def test_missing_values_can_be_the_leak(empty_home: Path, tmp_path: Path) -> None:
    y = labels("binary")
    said = output(tmp_path, table(y, closed_after=np.where(y == 1, np.arange(ROWS) % 50, np.nan)))
    assert "'closed_after' alone predicts outcome almost perfectly (AUC 1.000)" in said


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("seed", [0, 1])
def test_good_features_and_noise_are_not_suspected(
    empty_home: Path, tmp_path: Path, task: str, seed: int
) -> None:
    rng, y = np.random.default_rng(seed + 5), labels(task)
    codes = pd.Series(y).rank(method="dense").to_numpy() if task != "regression" else (y - 100) / 15
    frame = table(
        y, seed, strong=codes + rng.normal(0, 0.4, ROWS), code=rng.choice([f"c{i}" for i in range(90)], ROWS)
    )
    assert "alone predicts" not in output(tmp_path, frame, "--task", task)


def test_a_rare_class_or_few_rows_are_no_reason_for_a_suspicion(empty_home: Path, tmp_path: Path) -> None:
    rare = np.zeros(ROWS, int)
    rare[:6] = 1
    assert "alone predicts" not in output(tmp_path, table(rare, copy=rare))


def test_a_label_that_the_latest_partitions_lack_is_said(empty_home: Path, tmp_path: Path) -> None:
    frame = table(labels("regression"))
    frame.loc[frame["seen_on"] >= "2024-03-18", "outcome"] = np.nan
    said = output(tmp_path, frame)
    assert "the latest 3 partitions, from 2024-03-18 on, have no outcome" in said
    assert "set label.arrives_after to 3 partitions" in said


def test_scattered_gaps_in_a_label_are_not_a_late_label(empty_home: Path, tmp_path: Path) -> None:
    frame = table(labels("regression"))
    frame.loc[::3, "outcome"] = np.nan
    assert "arrives_after" not in output(tmp_path, frame)
