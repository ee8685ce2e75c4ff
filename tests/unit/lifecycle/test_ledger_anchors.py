"""Whoever rewrites the ledger with right hashes, or cuts its end, contradicts its anchors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from perennial.core.settings import settings
from perennial.lifecycle import ledger_anchors
from perennial.lifecycle.verification import verify_model
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind
from support import toys

#: Where the lake holds the ledger.
FOLDERS = ("ledger", "ledger_heads")


@pytest.fixture
def anchors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PERENNIAL_LEDGER_ANCHORS", str(tmp_path / "anchors"))
    return tmp_path / "anchors"


@pytest.fixture
def spec(make_model: Callable[..., ModelSpec], anchors: Path) -> ModelSpec:
    """A model with three records, all anchored by the steps that wrote them."""
    model = make_model(training={"rounds": 2})
    toys.publish(model)
    dispatch.run("train", model, as_of=toys.LAST)
    for folder in FOLDERS:
        shutil.copytree(Path(settings().lake, folder), Path(settings().lake, "backup", folder))
    dispatch.run("promote", model, as_of=toys.LAST, actor="ada")
    return model


def findings(spec: ModelSpec) -> list[str]:
    return verify_model(spec, actor="test")["findings"]


def cut(spec: ModelSpec) -> None:
    """Remove the last record and all traces of it in the lake."""
    for folder in FOLDERS:
        shutil.rmtree(Path(settings().lake, folder))
        shutil.copytree(Path(settings().lake, "backup", folder), Path(settings().lake, folder))


def rewrite(spec: ModelSpec) -> None:
    """Write the ledger anew with another actor, right in itself, and all that the lake holds of it."""
    chain = ledger.records(spec.name)
    shutil.rmtree(ledger.uri())
    Path(ledger.head_uri(spec.name)).unlink()
    for r in chain:
        ledger.append(
            spec.name, kind=LedgerKind(r["kind"]), decision=Decision(r["decision"]), reason=r["reason"],
            actor="somebody else", evidence=r["evidence"], partition=r["partition"], model_version=r["model_version"],
        )  # fmt: skip


def test_steps_anchor_what_they_record(spec: ModelSpec, anchors: Path) -> None:
    chain = ledger.records(spec.name)
    assert registry.model_tags(spec.name)[ledger_anchors.TAG] == f"{len(chain)}:{chain[-1]['hash']}"
    names = sorted(path.stem for path in (anchors / spec.name).iterdir())
    assert names == [f"{r['sequence']:09d}-{r['hash']}" for r in chain]
    assert findings(spec) == []
    dispatch.run("train", spec, as_of=toys.LAST)  # unchanged: nothing to anchor
    assert len(list((anchors / spec.name).iterdir())) == len(names)


@pytest.mark.parametrize("place", ["MLflow", "the folder"])
@pytest.mark.parametrize("tamper", [cut, rewrite])
def test_a_ledger_that_is_right_in_itself_contradicts_its_anchors(
    spec: ModelSpec, anchors: Path, place: str, tamper: Callable[[ModelSpec], None]
) -> None:
    tamper(spec)
    assert ledger.verify(spec.name) >= 1, "it is right in itself"
    if place == "MLflow":
        shutil.rmtree(anchors)
    else:
        registry.set_model_tag(spec.name, ledger_anchors.TAG, "")
    expected = "the last ones are missing" if tamper is cut else "is not the one that was appended"
    found = findings(spec)
    assert found and all(expected in text for text in found)
    assert any(("MLflow" if place == "MLflow" else str(anchors)) in text for text in found)
    assert findings(spec), "what is recorded and anchored later hides nothing"


def test_a_place_that_cannot_be_reached_stops_no_step(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.append(spec.name, kind=LedgerKind.ALERTING, decision=Decision.MUTED, reason="r", actor="ada")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    ledger_anchors.write_quietly(spec.name, "")
    assert "could not be anchored" in caplog.text
    assert any("does not answer" in text for text in findings(spec))
