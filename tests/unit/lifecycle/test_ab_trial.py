"""An A/B trial: the key of a row decides who serves it, and each version is judged on its own rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from perennial.core import dates
from perennial.core.errors import ArtifactError
from perennial.lifecycle.ab_trial import ABSplit, confidence_interval, trial_state
from perennial.lifecycle.explanation import explain_decision
from perennial.lifecycle.trials import active_trial, summarise
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps.conclude import conclude
from perennial.steps.monitor import monitor
from perennial.steps.promote import promote
from perennial.steps.rollback import rollback
from perennial.steps.score import score
from perennial.steps.train import train
from perennial.storage import delta_tables, ledger, manifests, object_store
from perennial.storage.ledger import Decision, LedgerKind
from support import lake, toys

pytestmark = pytest.mark.usefixtures("without_drift_report")

EARLY, LATE = dates.add_days(toys.LAST, -1), toys.LAST
FIRST, LAST = dates.add_days(LATE, 1), dates.add_days(LATE, 9)
ROWS, SHARE, NIGHTS = 400, 0.4, 8


def test_the_interval_is_wrong_no_oftener_than_stated_at_all_looks_together() -> None:
    """Of normal nights with unknown spread, and of nights with heavy tails, or that are skewed as losses are."""
    rng, streams, nights = np.random.default_rng(1), 500, 60
    draws = {
        "normal": rng.normal(0, 3, (streams, nights)),
        "heavy tails": rng.standard_t(5, (streams, nights)),
        "skewed": rng.gamma(4, 1, (streams, nights)) - 4,
    }
    for kind, values in draws.items():
        wrong = 0
        for stream in values:
            bounds = [confidence_interval(stream[:n], 0.95) for n in range(1, nights + 1)]
            wrong += any(not low <= 0 <= high for low, high in bounds)
        # 5% is allowed; three standard errors of the simulation on top.
        assert wrong / streams <= 0.05 + 3 * (0.05 * 0.95 / streams) ** 0.5, (kind, wrong / streams)


@pytest.mark.parametrize(("effect", "within"), [(1.0, 30), (2.0, 14)])
def test_a_real_difference_is_found_soon(effect: float, within: int) -> None:
    rng = np.random.default_rng(2)
    detected = [confidence_interval(rng.normal(effect, 1, within), 0.95)[0] > 0 for _ in range(300)]
    assert np.mean(detected) > 0.9


def test_few_nights_are_sure_of_nothing() -> None:
    for n in range(5):
        assert confidence_interval(np.full(n, 3.0) + 1e-9 * np.arange(n), 0.95) == (-np.inf, np.inf)
    assert trial_state(-np.inf, np.inf, 0.0, False) == "running"
    assert trial_state(-np.inf, np.inf, 0.0, True) == "failed"
    assert trial_state(0.01, 0.02, 0.0, True) == "passed"
    assert trial_state(0.01, 0.02, 0.03, False) == "failed", "surely better, but not by the margin"
    assert trial_state(0.01, 0.05, 0.03, False) == "running"


def belongs(spec: ModelSpec, version: str, key: str, share: float) -> bool:
    """The rule in other words than the library's."""
    digest = hashlib.md5("\x1f".join([spec.name, version, key]).encode()).digest()
    return int.from_bytes(digest[:8], "little") < share * 2**64


@pytest.fixture
def begin(make_model: Callable[..., ModelSpec], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A champion, and a challenger in a split; one of them has learned from shuffled labels."""
    from perennial.training import challenger_evaluation

    def make(task: str = "binary", better: bool = True, **retraining: Any) -> tuple[ModelSpec, str]:
        monkeypatch.setattr(challenger_evaluation, "gate_decision", lambda *_: (True, ["let through"]))
        policy = {"ab_share": SHARE, "trial": f"{NIGHTS} days"} | retraining
        spec = make_model(task, training={"rounds": 8}, retraining=policy)
        toys.publish(spec, shuffled=better)
        train(spec, as_of=EARLY)
        assert promote(spec, as_of=EARLY, actor="test")["promoted"] is True
        toys.publish(spec, shuffled=not better)
        challenger = train(spec, as_of=LATE)["version"]
        answer = promote(spec, as_of=LATE, actor="test")
        assert answer["promoted"] is False
        assert f"serves 40% of the rows for at most {policy['trial']} first" in answer["reason"]
        toys.publish(spec, FIRST, 10, n=ROWS)
        return spec, challenger

    return make


def arms(spec: ModelSpec) -> dict[str, str]:
    return {r["id"]: r["model_version"] for r in toys.content_of("predictions", spec.name)}


@pytest.mark.parametrize("better", [True, False])
def test_a_split_is_served_judged_and_concluded(begin: Callable[..., Any], better: bool) -> None:
    spec, challenger = begin(better=better)
    concluded: dict[str, Any] = {}
    for day in dates.dates(FIRST, LAST):
        result = score(spec, start=day)
        assert (result["rows_in"], result["rows_out"]) == (ROWS, ROWS)
        assert (result["model_version"], result["challenger"]) == ("1", challenger)
        judged = monitor(spec, as_of=day)
        trial = judged["trial"]
        page = object_store.read_text(judged["report"])
        assert "Challenger on trial" in page and summarise(trial, spec.metric).split("[")[0] in page
        concluded = conclude(spec, as_of=day, actor="scheduler")
        if trial["state"] != "running":
            break
        assert not concluded["promoted"]
    assert 5 <= trial["days"] <= NIGHTS and trial["ab_share"] == SHARE
    assert (trial["low"] > 0) if better else (trial["high"] < 0), (
        "the interval excluded 0 before the time was over"
    )
    assert concluded["promoted"] is better
    champion = registry.get_champion(spec)
    assert champion is not None and champion.version == (challenger if better else "1")
    decisions = [r["decision"] for r in ledger.records(spec.name, LedgerKind.TRIAL)]
    assert decisions == ["started", "passed" if better else "failed"]
    ledger.verify(spec.name)
    ledger.append(
        spec.name,
        kind=LedgerKind.RETRAINING,
        decision=Decision.REQUESTED,
        reason="gain",
        actor="test",
        partition=LATE,
    )
    lines = explain_decision(spec, LATE)
    policy = "it serves 40% of the rows for at most 8 days, compared with version 1"
    assert f"  Version {challenger} is on trial: {policy}" in lines
    outcome = "passed its trial" if better else "failed its trial"
    assert f"  Version {challenger} {outcome}: {summarise(trial, spec.metric)}" in lines
    assert ledger.records(spec.name, LedgerKind.TRIAL)[-1]["evidence"]["low"] == trial["low"]
    # From then on one version serves all rows, and is judged alone.
    score(spec, start=LAST)
    assert {v for i, v in arms(spec).items() if i.startswith(LAST)} == {champion.version}
    assert monitor(spec, as_of=LAST, force=True)["trial"] is None


def test_rows_go_by_the_hash_of_their_key_each_time(
    begin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, challenger = begin()
    last = dates.add_days(FIRST, 2)
    score(spec, start=LATE, end=last)
    before = toys.content_of("predictions", spec.name)
    wanted = {
        r["id"]: challenger
        if r[delta_tables.PARTITION] > LATE and belongs(spec, challenger, r["id"], SHARE)
        else "1"
        for r in before
    }
    versions = arms(spec)
    assert versions == wanted and len(versions) == toys.ROWS + 3 * ROWS
    assert abs(sum(v == challenger for v in versions.values()) / (3 * ROWS) - SHARE) < 0.05
    assert score(spec, start=LATE, end=last)["status"] == "unchanged"
    # Each row has what its own version says of it.
    from perennial.features.engine import FeatureQuery

    rows = toys.rows("binary", FIRST, ROWS)
    predictions = {}
    for version in ("1", challenger):
        at_work = registry.get_version(spec.name, version)
        predictions[version] = registry.load_model(at_work).predict(
            FeatureQuery(registry.load_spec(at_work)).compute(rows)
        )
    for i, row in enumerate(r for r in before if r[delta_tables.PARTITION] == FIRST):
        assert row["prediction"] == predictions[row["model_version"]][i]
    log = toys.content_of("served", spec.name)
    assert {r["model_version"] for r in log} == {"1", challenger}
    monkeypatch.setattr("perennial.scoring.planning.UNIT_ROWS", 70)
    monkeypatch.setattr("perennial.scoring.planning.COMMIT_ROWS", 500)
    assert score(spec, start=LATE, end=last, force=True)["rows_out"] == toys.ROWS + 3 * ROWS
    assert toys.content_of("predictions", spec.name) == before
    assert str(toys.content_of("served", spec.name)) == str(log)
    states = monitor(spec, as_of=last)
    assert states["signals"]["skew"]["state"] == "ok"
    assert states["performance"]["scored_rows"] == toys.ROWS + sum(
        v == "1" for i, v in wanted.items() if not i.startswith(LATE)
    )


def test_a_manifest_names_both_versions_and_a_changed_split_is_scored_anew(begin: Callable[..., Any]) -> None:
    spec, challenger = begin()
    score(spec, start=LATE, end=FIRST)
    alone, shared = (manifests.read(spec.name, "score", day) for day in (LATE, FIRST))
    assert alone is not None and shared is not None
    assert "split" not in alone.inputs and alone.result.get("challenger") is None
    part = shared.inputs["split"]
    digest = registry.get_version(spec.name, challenger).digest
    assert (part["version"], part["digest"], part["share"]) == (challenger, digest, SHARE)
    assert shared.result["challenger"] == challenger
    changed = spec.model_copy(update={"retraining": spec.retraining.model_copy(update={"ab_share": 0.1})})
    result = score(changed, start=LATE, end=FIRST)
    assert result["partitions"] == [FIRST]
    few = sum(v == challenger for i, v in arms(spec).items() if i.startswith(FIRST))
    assert few == sum(belongs(spec, challenger, f"{FIRST}-{i:05d}", 0.1) for i in range(ROWS))
    off = spec.model_copy(update={"retraining": spec.retraining.model_copy(update={"ab_share": 0.0})})
    assert "challenger" not in score(off, start=FIRST)
    assert set(arms(spec).values()) == {"1"}


@pytest.mark.parametrize("task", ["multiclass", "regression", "ranking"])
def test_every_task_can_be_split(begin: Callable[..., Any], task: str) -> None:
    spec, challenger = begin(task)
    last = dates.add_days(FIRST, 5)
    assert score(spec, start=FIRST, end=last)["rows_out"] == 6 * ROWS
    versions = arms(spec)
    assert set(versions.values()) == {"1", challenger}
    if task == "ranking":
        lists = {i: r for day in dates.dates(FIRST, last) for i, r in _lists(day)}
        assert len({(lists[i], v) for i, v in versions.items()}) == len(set(lists.values()))
        one = next(i for i in versions if i.startswith(FIRST))
        assert (versions[one] == challenger) is belongs(spec, challenger, str(lists[one]), SHARE)
    trial = monitor(spec, as_of=last)["trial"]
    assert trial["days"] == 5 and trial["gain"] > 0 and trial["served"] == 5


def _lists(day: str) -> list[tuple[str, int]]:
    rows = toys.rows("ranking", day, ROWS)
    return list(zip(rows["id"].to_pylist(), rows["list"].to_pylist(), strict=True))


def test_without_an_answer_in_time_the_challenger_is_given_up(begin: Callable[..., Any]) -> None:
    """Nights without labels count, too: a trial must not last for ever."""
    spec, challenger = begin(trial="5 days")
    end = dates.add_days(FIRST, 6)
    delta_tables.replace(delta_tables.table_uri("labels", spec.name), _none(spec), FIRST, end)
    score(spec, start=FIRST, end=end)
    assert monitor(spec, as_of=dates.add_days(FIRST, 4))["trial"]["state"] == "running"
    trial = monitor(spec, as_of=end)["trial"]
    assert (trial["days"], trial["served"], trial["state"], trial["gain"]) == (0, 6, "failed", None)
    assert conclude(spec, as_of=end, actor="scheduler")["promoted"] is False
    last = ledger.records(spec.name, LedgerKind.TRIAL)[-1]
    assert (last["decision"], last["model_version"]) == ("failed", challenger)
    assert last["reason"] == "none of 6 partitions could be compared: too few labelled rows of both versions"
    json.dumps(last, allow_nan=False)


def _none(spec: ModelSpec) -> Any:
    rows = lake.read_table(delta_tables.table_uri("labels", spec.name), start=FIRST, end=FIRST)
    return rows.schema.empty_table()


def test_a_champion_that_was_moved_ends_the_split(begin: Callable[..., Any]) -> None:
    spec, challenger = begin()
    rollback(spec, actor="operator", reason="sure of it", to_version=challenger)
    last = ledger.records(spec.name, LedgerKind.TRIAL)[-1]
    assert (last["decision"], last["model_version"]) == ("cancelled", challenger)
    assert active_trial(spec) is None
    rollback(spec, actor="operator", reason="not so sure", to_version="1")
    score(spec, start=FIRST)
    assert set(arms(spec).values()) == {"1"}, "it does not begin again"
    assert "serves 40% of the rows" in promote(spec, as_of=LATE, actor="test")["reason"]
    assert active_trial(spec) is not None, "unless it is asked for"


def test_a_champion_that_was_moved_by_hand_ends_the_split_at_once(begin: Callable[..., Any]) -> None:
    begun, challenger = begin()
    gate = begun.gate.model_copy(update={"external_change": "follow"})
    spec = begun.model_copy(update={"gate": gate})
    registry.set_alias(spec.name, challenger, "champion")
    score(spec, start=FIRST)
    assert set(arms(spec).values()) == {challenger}
    monitor(spec, as_of=FIRST)
    answer = conclude(spec, as_of=FIRST, actor="scheduler")
    assert answer == {"promoted": False, "reason": "no challenger is on trial"}
    assert ledger.records(spec.name, LedgerKind.TRIAL)[-1]["decision"] == "cancelled"


def test_a_damaged_challenger_is_named_with_what_to_do(
    begin: Callable[..., Any], artifact: Callable[..., Any], empty_home: Any
) -> None:
    spec, challenger = begin()
    artifact(spec, challenger).write_bytes(b"no model")
    for copy in (empty_home / "cache" / "models").iterdir():
        copy.unlink()
    with pytest.raises(ArtifactError, match=f"version {challenger} is to serve 40% of the rows") as error:
        score(spec, start=FIRST)
    assert "set retraining.ab_share to 0" in error.value.remedy


def test_a_row_is_given_by_all_columns_of_its_key_and_no_night_before_the_training() -> None:
    split = ABSplit("m", "2", ("a", "b"), 0.5, "2024-01-01")
    import pyarrow as pa

    table = pa.table({"a": ["x", "y"] * 500, "b": [i // 2 for i in range(1000)]})
    mask = split.served_by_challenger(table)
    assert 0.4 < mask.mean() < 0.6 and (mask[::2] != mask[1::2]).any()
    assert not (mask == ABSplit("m", "3", ("a", "b"), 0.5, "2024-01-01").served_by_challenger(table)).all()


def test_keys_that_hold_the_separator_are_drawn_separately() -> None:
    import pyarrow as pa

    one = pa.table({"a": [f"{i}\x1fb" for i in range(400)], "b": ["c"] * 400})
    other = pa.table({"a": [str(i) for i in range(400)], "b": ["b\x1fc"] * 400})
    split = ABSplit("m", "2", ("a", "b"), 0.5, "2024-01-01")
    assert (split.served_by_challenger(one) != split.served_by_challenger(other)).mean() > 0.3
