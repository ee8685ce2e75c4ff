"""A training whose challenger is better than the champion in total, and worse in one slice of the held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.modeling import performance, registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps import summaries
from perennial.steps.promote import promote
from perennial.steps.train import train
from support import toys

Make = Callable[..., ModelSpec]
#: Partitions from here on have true labels: they are held out.
HELD_OUT = dates.add_days(toys.LAST, -6)


def publish(spec: ModelSpec, patch: pytest.MonkeyPatch, *random: str) -> None:
    """Publish rows; labels of the rows to fit on are random for some values of ``k``."""
    true_labels = toys.labels

    def labels(task: str, table: pa.Table, **_: Any) -> pa.Table:
        true = true_labels(task, table)
        if table["id"][0].as_py() >= HELD_OUT:
            return true
        guess = np.random.default_rng(3).integers(0, 2, len(table))
        of_slice = np.isin(np.asarray(table["k"].to_pylist()), random)
        return true.set_column(1, "y", pa.array(np.where(of_slice, guess, true["y"].to_numpy())))

    with patch.context() as patched:
        patched.setattr(toys, "labels", labels)
        toys.publish(spec, n=180)


def train_worse_for_a(make: Make, patch: pytest.MonkeyPatch, **changes: Any) -> tuple[ModelSpec, Any]:
    """Promote a version that knows the rows with ``k = a`` only; train one that knows the others."""
    monitoring = {"slices": ["k", "place"]}
    spec = make(monitoring=monitoring, **changes)
    publish(spec, patch, "b", "c")
    first = train(spec, as_of=toys.LAST)
    assert first["gate"]["passed"] and first["worse_slices"] == []
    promote(spec, as_of=toys.LAST, actor="test")
    publish(spec, patch, "a")
    return spec, train(spec, as_of=toys.LAST)


def test_metrics_and_slices_are_stored_with_the_version_and_shown(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, result = train_worse_for_a(make_model, monkeypatch)
    assert result["gate"]["passed"], result["gate"]["reasons"]
    version = registry.get_version(spec.name, result["version"])
    stored = performance.parse(registry.load_json_artifact(version, performance.ARTIFACT))
    assert {n: e.value for n, e in stored.metrics.items()} == pytest.approx(result["metrics"], abs=1e-5)
    compared = result["gate"]["against_champion"]
    assert stored.champion["log_loss"].value == pytest.approx(compared["other"], abs=1e-5)
    assert stored.rows == result["rows"]["holdout"] == 5 * 180
    assert {s.column: 0 for s in stored.slices} == {"k": 0, "place": 0}
    assert sum(s.rows for s in stored.slices) == 2 * stored.rows and not stored.other_rows
    assert [s.name for s in stored.worse_slices] == ["k = a"]
    (sentence,) = result["worse_slices"]
    assert sentence.startswith("k = a: improvement -") and sentence.endswith("rows")
    lines = summaries.summarise("train", spec, result).text()
    assert any(line.startswith("Worse than the champion for k = a: ") for line in lines)
    page = Path(result["report"]).read_text()
    assert "Slices by place" in page and "95% interval" in page and "improvement over the champion" in page
    assert 'aria-label="Log loss by k (lower is better). ' in page
    assert "rows; clearly worse than the champion</td>" in page
    plots = mlflow.MlflowClient().list_artifacts(result["run_id"], "plots")
    names = {Path(file.path).name for file in plots}
    assert {f"{kind}_{n}.svg" for kind in ("slices", "slice_improvement") for n in (1, 2)} <= names


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"max_worsening": 0.1, "min_rows": 200}, "slice k = a: log_loss "),
        ({"max_worsening": 0.1, "min_rows": 800}, "no slice of k, place has 800 held-out rows"),
        ({"max_worsening": 1.0, "min_rows": 400}, ""),
    ],
)
def test_a_challenger_that_is_worse_in_a_slice_is_refused(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, policy: dict[str, Any], expected: str
) -> None:
    """Without ``gate.slices`` the same challenger passes, as it is better in total."""
    spec, result = train_worse_for_a(make_model, monkeypatch, gate={"slices": policy})
    gate = result["gate"]
    failed = [reason for reason in gate["reasons"] if reason.startswith("FAILED")]
    assert gate["against_champion"]["low"] > 0
    if not expected:
        assert gate["passed"] and not failed
        last = gate["reasons"][-1]
        assert (
            last.startswith("ok: none of 2 slices with at least 400 rows is clearly worse")
            and "place" in last
        )
        assert "3 others have fewer rows and are not judged" in last
        return
    assert not gate["passed"] and len(failed) == 1 and expected in failed[0], failed
    if "k = a" in expected:
        assert (
            "must not be clearly worse by more than 10.00%" in failed[0]
            and "gate.slices.max_worsening" in failed[0]
        )
        assert not promote(spec, as_of=toys.LAST, actor="test")["promoted"]
