"""Scoring: every published row once, by the champion and no other, the same content however it is run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.core.errors import ArtifactError, DataError, RegistryError
from perennial.core.settings import settings
from perennial.scoring.scorer import Scorer
from perennial.spec.model_spec import ModelSpec
from perennial.steps import score as score_step
from perennial.steps.promote import promote
from perennial.steps.score import score
from perennial.steps.train import train
from perennial.storage import delta_tables, manifests
from support import lake, processes, toys

DAY = dates.add_days(toys.FIRST, 15)


def predictions(world: Any) -> list[dict[str, Any]]:
    return toys.content_of("predictions", world.spec.name)


def test_every_row_once(world: Any) -> None:
    result = score(world.spec, start=DAY, run_id="r1")
    assert result == {
        "partitions": [DAY], "missing": [], "rows_in": toys.ROWS, "rows_out": toys.ROWS,
        "model_version": world.result["version"], "status": "scored",
    }  # fmt: skip
    table = lake.read_table(delta_tables.table_uri("predictions", world.spec.name))
    assert sorted(table["id"].to_pylist()) == toys.rows("binary", DAY)["id"].to_pylist()
    assert set(table[delta_tables.PARTITION].to_pylist()) == {DAY}
    assert set(table["model_version"].to_pylist()) == {world.result["version"]}
    assert set(table["run_id"].to_pylist()) == {"r1"}
    assert all(t.endswith("Z") for t in table["scored_at"].to_pylist())
    done = manifests.read(world.spec.name, "score", DAY)
    assert done is not None
    assert (done.rows_in, done.rows_out, done.model_version) == (
        toys.ROWS,
        toys.ROWS,
        world.result["version"],
    )


def test_a_rerun_is_unchanged_and_a_forced_one_gives_the_same(world: Any) -> None:
    score(world.spec, start=DAY)
    before, version = (
        predictions(world),
        delta_tables.version(delta_tables.table_uri("predictions", world.spec.name)),
    )
    again = score(world.spec, start=DAY)
    assert again["status"] == "unchanged"
    assert again["partitions"] == []
    assert (again["rows_in"], again["rows_out"]) == (toys.ROWS, toys.ROWS), "what its event says"
    assert delta_tables.version(delta_tables.table_uri("predictions", world.spec.name)) == version
    assert score(world.spec, start=DAY, force=True)["status"] == "scored"
    assert predictions(world) == before


def test_rows_published_anew_are_scored_anew_and_only_they(world: Any) -> None:
    end = dates.add_days(DAY, 2)
    score(world.spec, start=DAY, end=end)
    uri, middle = delta_tables.table_uri("published", world.spec.name), dates.add_days(DAY, 1)
    rows = toys.rows("binary", middle, 10)
    delta_tables.replace(uri, rows.append_column(delta_tables.PARTITION, pa.array([middle] * 10)), middle)
    result = score(world.spec, start=DAY, end=end)
    assert result["partitions"] == [middle]
    assert result["rows_in"] == result["rows_out"] == 2 * toys.ROWS + 10, "of the range"
    assert len(predictions(world)) == 2 * toys.ROWS + 10


def test_a_range_gives_what_its_nights_give(world: Any) -> None:
    days = dates.dates(toys.FIRST, dates.add_days(toys.FIRST, 7))
    for day in days:
        score(world.spec, start=day)
    night_by_night = predictions(world)
    assert score(world.spec, start=days[0], end=days[-1], force=True)["rows_out"] == 8 * toys.ROWS
    assert predictions(world) == night_by_night


@pytest.mark.parametrize("rows", [7, 45, 100])
def test_units_and_commits_of_any_size_give_the_same(
    world: Any, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Stretches of a partition, single ones, several together."""
    end = dates.add_days(DAY, 4)
    score(world.spec, start=DAY, end=end)
    before = predictions(world)
    monkeypatch.setattr("perennial.scoring.planning.UNIT_ROWS", rows)
    monkeypatch.setattr("perennial.scoring.planning.COMMIT_ROWS", 150)
    result = score(world.spec, start=DAY, end=end, force=True)
    assert (result["rows_in"], result["rows_out"]) == (5 * toys.ROWS, 5 * toys.ROWS)
    assert predictions(world) == before


def test_a_range_that_was_interrupted_goes_on_where_it_was(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nights are marked as done while the later ones are scored."""
    days = dates.dates(DAY, dates.add_days(DAY, 4))
    monkeypatch.setattr("perennial.scoring.planning.UNIT_ROWS", toys.ROWS)
    monkeypatch.setattr("perennial.scoring.planning.COMMIT_ROWS", toys.ROWS)
    monkeypatch.setattr("perennial.steps.score.LOG_PARTITIONS", 2)
    real = Scorer.score

    def failing(scorer: Scorer, unit: Any) -> Any:
        if unit.partitions[0][0] == days[4]:
            raise MemoryError("no memory left")
        return real(scorer, unit)

    with monkeypatch.context() as patched:
        patched.setattr(Scorer, "score", failing)
        with pytest.raises(Exception, match="no memory left"):
            score(world.spec, start=days[0], end=days[-1], run_id="first")
    result = score(world.spec, start=days[0], end=days[-1], run_id="second")
    assert result["partitions"] == days[4:]
    assert len(predictions(world)) == 5 * toys.ROWS
    rows = lake.read_table(delta_tables.table_uri("predictions", world.spec.name))
    found = rows.group_by(["partition_date", "run_id"]).aggregate([])
    assert sorted(zip(*found.to_pydict().values(), strict=True)) == [
        *((day, "first") for day in days[:4]),
        (days[4], "second"),
    ]


def strict(make_model: Callable[..., ModelSpec]) -> ModelSpec:
    """A model with a champion, which cannot score `DAY`; it was trained two days before."""
    spec, as_of = make_model(features={"unseen": "stop"}), dates.add_days(DAY, -2)
    toys.publish(spec)
    train(spec, as_of=as_of)
    promote(spec, as_of=as_of, actor="test")
    uri = delta_tables.table_uri("published", spec.name)
    rows = toys.rows("binary", DAY)
    rows = rows.set_column(rows.column_names.index("k"), "k", pa.array(["new"] * len(rows)))
    delta_tables.replace(uri, rows.append_column(delta_tables.PARTITION, pa.array([DAY] * len(rows))), DAY)
    return spec


def published(spec: ModelSpec, days: list[str]) -> None:
    """Leave the manifests of the data step."""
    for day in days:
        manifests.write(manifests.Manifest(spec.name, "data", day, {}, {}), 0)


def test_the_partition_that_cannot_be_scored_is_named(make_model: Callable[..., ModelSpec]) -> None:
    spec = strict(make_model)
    with pytest.raises(DataError, match="category unseen in training") as error:
        score(spec, start=toys.FIRST, end=toys.LAST)
    assert (error.value.model, error.value.partition) == (spec.name, DAY)
    assert delta_tables.partitions(delta_tables.table_uri("predictions", spec.name)) == []
    assert manifests.read(spec.name, "score", toys.FIRST) is None


def test_nights_left_behind_are_caught_up_with(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they follow the last scored one or precede it, as after a pause; not before the champion."""
    days = dates.dates(dates.add_days(toys.LAST, 1), dates.add_days(toys.LAST, 5))
    toys.publish(world.spec, days[0], 5)
    published(world.spec, dates.dates(dates.add_days(toys.LAST, -3), days[-1]))
    assert "late" not in score(world.spec, start=days[2], catch_up=True)  # published this minute
    monkeypatch.setattr("perennial.lifecycle.backlog.PENDING_SECONDS", -60)
    result = score(world.spec, start=days[-1], force=True, catch_up=True)
    late = [days[0], days[1], days[3]]
    assert (result["partitions"], result["late"], result["rows_in"]) == (days[-1:], late, toys.ROWS)
    assert delta_tables.partitions(delta_tables.table_uri("predictions", world.spec.name)) == days
    by_itself = predictions(world)
    score(world.spec, start=days[0], end=days[-1], force=True)
    assert predictions(world) == by_itself
    assert "late" not in score(world.spec, start=days[-1], force=True, catch_up=True)


def test_a_night_left_behind_that_cannot_be_scored_hinders_no_other(
    make_model: Callable[..., ModelSpec], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = strict(make_model)
    monkeypatch.setattr("perennial.lifecycle.backlog.PENDING_SECONDS", -60)
    days = dates.dates(dates.add_days(DAY, -1), dates.add_days(DAY, 2))
    published(spec, days)
    score(spec, start=days[0])
    with caplog.at_level("WARNING", "perennial"):
        result = score(spec, start=days[3], catch_up=True)
    assert (result["status"], result["late"]) == ("scored", [days[2]])
    assert f"Overdue partition {DAY}: the step score failed:" in caplog.text
    assert "category unseen in training" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", "perennial"):
        assert "late" not in score(spec, start=days[3], catch_up=True)
    assert caplog.text == "", "it is not tried again from the same rows by the same champion"


@pytest.mark.parametrize("read", [1, None])
def test_a_commit_that_another_writer_won_is_written_again_whole(
    world: Any, monkeypatch: pytest.MonkeyPatch, read: int | None
) -> None:
    import deltalake
    from deltalake.exceptions import CommitFailedError

    write, lost = deltalake.write_deltalake, []

    def late(uri: str, rows: Any, **how: Any) -> None:
        if not lost:
            lost.append(sum(len(batch) for batch in islice(rows, read)))
            raise CommitFailedError("another writer won")
        write(uri, rows, **how)

    monkeypatch.setattr(deltalake, "write_deltalake", late)
    result = score(world.spec, start=DAY, end=dates.add_days(DAY, 1))
    assert (lost, result["rows_out"]) == ([toys.ROWS * (read or 2)], 2 * toys.ROWS)
    assert len({r["id"] for r in predictions(world)}) == len(predictions(world)) == 2 * toys.ROWS


def test_only_what_is_not_done_yet_is_scored(world: Any) -> None:
    days = dates.dates(toys.FIRST, dates.add_days(toys.FIRST, 4))
    score(world.spec, start=days[2])
    kept = manifests.read(world.spec.name, "score", days[2])
    result = score(world.spec, start=days[0], end=days[4], run_id="later")
    assert result["partitions"] == [days[0], days[1], days[3], days[4]]
    assert manifests.read(world.spec.name, "score", days[2]) == kept
    assert len(predictions(world)) == 5 * toys.ROWS


def test_a_missing_partition_is_told_and_a_gap_is_named(world: Any) -> None:
    with pytest.raises(DataError, match=r"partition 2030-01-01: no rows are published"):
        score(world.spec, start="2030-01-01")
    result = score(world.spec, start=toys.LAST, end=dates.add_days(toys.LAST, 2))
    assert result["partitions"] == [toys.LAST]
    assert result["missing"] == [dates.add_days(toys.LAST, 1), dates.add_days(toys.LAST, 2)]


def test_without_a_champion_nothing_is_written(make_model: Callable[..., ModelSpec]) -> None:
    spec = make_model()
    toys.publish(spec, days=1)
    assert score(spec, start=toys.FIRST)["status"] == "no champion"
    assert delta_tables.version(delta_tables.table_uri("predictions", spec.name)) is None
    assert manifests.read(spec.name, "score", toys.FIRST) is None


def test_two_runs_at_once_leave_every_row_once(world: Any) -> None:
    folder = str(world.spec.folder)
    runs = [
        processes.start(processes.step, folder, "score", {"start": DAY, "run_id": f"r{n}"}) for n in range(2)
    ]
    assert processes.wait(*runs) == [0, 0]
    found = predictions(world)
    assert len(found) == len({r["id"] for r in found}) == toys.ROWS
    rows = lake.read_table(delta_tables.table_uri("predictions", world.spec.name))
    assert len(set(rows["run_id"].to_pylist())) == 1  # one run's rows, not a mixture
    assert score(world.spec, start=DAY)["status"] == "unchanged"


def test_a_changed_copy_of_the_model_is_fetched_anew(world: Any) -> None:
    score(world.spec, start=DAY)
    before = predictions(world)
    copy = world.home / "cache" / "models" / f"{world.result['digest']}.ubj"
    copy.write_bytes(flipped(copy.read_bytes()))
    score(world.spec, start=DAY, force=True)
    assert predictions(world) == before


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_an_artifact_with_one_flipped_byte_is_refused(
    make_model: Callable[..., ModelSpec], artifact: Callable[[ModelSpec, str], Path]
) -> None:
    spec = make_model()
    toys.publish(spec)
    result = train(spec, as_of=toys.LAST)
    promote(spec, as_of=toys.LAST, actor="test")
    stored = artifact(spec, result["version"])
    stored.write_bytes(flipped(stored.read_bytes()))
    for copy in (settings().home / "cache" / "models").iterdir():
        copy.unlink()
    for _ in range(2):  # nothing of it is kept
        with pytest.raises(ArtifactError, match="changed or damaged") as error:
            score(spec, start=DAY)
        assert error.value.model == spec.name
        assert "roll the champion back" in error.value.remedy
    assert delta_tables.version(delta_tables.table_uri("predictions", spec.name)) is None
    stored.unlink()
    with pytest.raises(ArtifactError, match="no artifact"):
        score(spec, start=DAY)


def test_an_unseen_category_is_missing_or_stops(make_model: Callable[..., ModelSpec]) -> None:
    specs = {unseen: make_model(features={"unseen": unseen}) for unseen in ("missing", "stop")}
    day = dates.add_days(toys.LAST, 1)
    for unseen, spec in specs.items():
        toys.publish(spec)
        train(spec, as_of=toys.LAST)
        promote(spec, as_of=toys.LAST, actor="test")
        rows = toys.rows("binary", day)
        rows = rows.set_column(rows.column_names.index("k"), "k", pa.array(["=1+1"] * len(rows)))
        delta_tables.replace(
            delta_tables.table_uri("published", spec.name),
            rows.append_column(delta_tables.PARTITION, pa.array([day] * len(rows))),
            day,
        )
        if unseen == "missing":
            assert score(spec, start=day)["rows_out"] == toys.ROWS
            continue
        score(spec, start=toys.LAST)
        with pytest.raises(DataError, match="category unseen in training") as error:
            score(spec, start=day)
        assert (error.value.model, error.value.partition) == (spec.name, day)
        assert delta_tables.partitions(delta_tables.table_uri("predictions", spec.name)) == [toys.LAST]
        assert manifests.read(spec.name, "score", day) is None


def test_the_champion_scores_with_the_features_it_was_trained_on(world: Any, tmp_path: Path) -> None:
    """Today's folder may have gone on: the champion's own spec scores."""
    score(world.spec, start=DAY)
    before = predictions(world)
    changed = toys.model(tmp_path / "models", world.spec.name, sql="SELECT id, x * 100 AS other FROM rows",
                         features={"categorical": [], "references": []})  # fmt: skip
    score(changed, start=DAY, force=True)
    assert predictions(world) == before


def test_mlflow_down_is_told(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RegistryError, match=r"does not answer(.|\n)*What to do: start it"):
        score(world.spec, start=DAY)
    assert delta_tables.version(delta_tables.table_uri("predictions", world.spec.name)) is None


def test_one_item_is_made_ahead_and_an_error_comes_through() -> None:
    ready = threading.Event()

    def double(i: int) -> int:
        if i == 2:
            ready.set()
        if i == 3:
            raise ValueError("three")
        return i * 2

    with ThreadPoolExecutor(2) as pool:
        items = score_step._map_ahead(pool, double, [1, 2, 3], 1)
        assert next(items) == 2
        assert ready.wait(5), "the second was not begun while the first was in use"
        assert next(items) == 4
        with pytest.raises(ValueError, match="three"):
            next(items)
        assert list(score_step._map_ahead(pool, double, [], 1)) == []
