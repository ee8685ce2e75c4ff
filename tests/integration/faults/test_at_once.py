"""Two runs of the same step for the same partition at once: the data are right, whoever ends last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from perennial.core import dates
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch
from perennial.storage import ledger, manifests
from perennial.storage.ledger import LedgerKind
from support import processes, toys

END = dates.add_days(toys.FIRST, 1)


def twice(spec: ModelSpec, step: str, **arguments: Any) -> None:
    runs = [processes.start(processes.step, str(spec.folder), step, arguments) for _ in range(2)]
    assert processes.wait(*runs) == [0, 0]


def test_data(empty_home: Path, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    toys.land(spec, days=2)
    twice(spec, "data", start=toys.FIRST, end=END)
    rows = toys.content_of("published", "toy")
    assert len(rows) == len({r["id"] for r in rows}) == 2 * toys.ROWS
    assert len(toys.content_of("labels", "toy")) == toys.ROWS
    assert dispatch.run("data", spec, start=toys.FIRST, end=END)["status"] == "unchanged"


def test_train_and_promote(make_model: Callable[..., ModelSpec]) -> None:
    spec = make_model(training={"rounds": 5})
    toys.publish(spec)
    twice(spec, "train", as_of=toys.LAST)
    done = manifests.read(spec.name, "train", toys.LAST)
    assert done is not None
    assert {registry.get_version(spec.name, v).digest for v in ("1", "2")} == {done.result["digest"]}
    assert ledger.verify(spec.name) == 2
    twice(spec, "promote", as_of=toys.LAST, actor="test")
    champion = registry.get_champion(spec)
    assert champion is not None
    assert champion.version == done.result["version"]
    assert len(ledger.records(spec.name, LedgerKind.PROMOTION)) == 1
