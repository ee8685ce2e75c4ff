"""Rows of a key leave every table, every older version and every log; a record says so without the key."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from perennial.core import dates
from perennial.core.errors import DataError, DataReplacedError, PerennialError, StorageError, time_heals
from perennial.governance import erased_rows, erasure, erasure_keys, holds
from perennial.governance.reproduction import reproduce
from perennial.ingestion import erasure_requests
from perennial.lifecycle import promotion, verification
from perennial.modeling import registry
from perennial.monitoring import train_serve_skew
from perennial.steps import train as steps_train
from perennial.steps.score import score
from perennial.storage import delta_tables, file_digests, generations, ledger, manifests
from perennial.storage.ledger import Decision, LedgerKind
from support import canary, lake, toys
from support.canary import TEXT
from support.feeds import history_table
from support.small_model import COLUMNS, DAY, SmallModel, rows

PHONE = "+49 170 7654321"
NEXT = "2020-03-02"


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below a folder, Parquet also as the rows that it holds."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += str(pq.ParquetFile(path).read().to_pylist()).encode()
        yield path, content


def holding(folder: Path, *values: str) -> list[str]:
    """The files below a folder that hold one of some values."""
    return [
        str(path.relative_to(folder))
        for path, content in contents(folder)
        if any(raw in content for value in values for raw in canary.forms(value).values())
    ]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    """Two partitions, published twice; one person has two good rows and a bad one in the first, and three labels.

    A third row was of that person when it was published first; a row of the second partition has the key of another.
    """
    model = SmallModel(tmp_path_factory.mktemp("published"))
    phones = [PHONE, PHONE, *["+49 1"] * 38]
    table = rows(id=[TEXT, *(f"{DAY}-{i}" for i in range(1, 40))], phone=phones)
    before = table.set_column(7, "phone", [[PHONE] * 3 + ["+49 1"] * 37])
    recurring = rows(NEXT, id=[f"{DAY}-1", *(f"{NEXT}-{i}" for i in range(1, 40))])
    bad = rows(n=41, id=[f"bad {TEXT}", *table.column("id").to_pylist()], amount=[-1.0] + [1.0] * 40,
               phone=[PHONE, *phones])  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("perennial.ingestion.data_profile.write_profile", lambda *_: None)
        for name, folder in (("HOME", "home"), ("LAKE", "lake"), ("LANDING", "landing")):
            patch.setenv(f"PERENNIAL_{name}", str(model.folder / folder))
        model.land(before)
        model.land(recurring, NEXT)
        model.run(DAY, NEXT)
        model.land(bad)
        model.land(bad.select(["id"]).append_column("value", [[1.0] * 41]), feed="labels")
        model.run(DAY, NEXT)
    return model


@pytest.fixture
def small(published: SmallModel, small_model: SmallModel) -> SmallModel:
    """A copy of that model."""
    shutil.copytree(published.folder, small_model.folder, dirs_exist_ok=True)
    return small_model


def request(model: SmallModel, **key: str) -> str:
    return erasure_keys.request_erasure(model.spec, [key], "ada").identifier


def test_a_key_leaves_every_table_version_and_log(small: SmallModel) -> None:
    assert len(holding(small.lake, TEXT, PHONE)) > 3
    uri = delta_tables.table_uri("labels", "small")
    label = lake.read_table(uri).filter(pc.field("id") == f"{DAY}-1").drop_columns([delta_tables.PARTITION])
    delta_tables.replace(uri, label.append_column(delta_tables.PARTITION, [[NEXT]]), NEXT)
    name = request(small, phone=PHONE)
    result = erasure.erase(small.spec, request=name, hidden=True)
    assert holding(small.lake, TEXT, PHONE) == []
    assert result["rows"] == {"published": 2, "labels": 3, "quarantine": 1, "predictions": 0, "served": 0}
    assert result["partitions"] == [DAY] and result["files"] >= 1 and result["versions"] == []
    assert [Path(uri).parent.name for uri in result["landed"]] == ["rows", "labels"], "both still hold it"
    assert {r["partition_date"] for r in small.table()} == {DAY, NEXT} and len(small.table()) == 78
    labelled = [(r["partition_date"], r["id"]) for r in small.table("labels")]
    assert (NEXT, f"{DAY}-1") in labelled, "a key identifies a row within its partition"
    assert (DAY, f"{DAY}-2") in labelled, "the row is of somebody else by now"
    assert len(labelled) == 39
    (record,) = ledger.records("small", LedgerKind.ERASURE)
    assert record["evidence"]["rows"] == result["rows"] and record["actor"] == "ada"
    findings = verification.verify_model(small.spec, actor="test")["findings"]
    assert [finding for finding in findings if "MLflow" not in finding] == []


def test_an_interrupted_erasure_goes_on_and_what_landed_is_not_published_again(
    small: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, remove = request(small, id=TEXT), erased_rows.remove

    def interrupted(uri: str, *args: Any) -> Any:
        if "predictions" in uri:
            raise StorageError("the disk is full", "")
        return remove(uri, *args)

    with monkeypatch.context() as patch:
        patch.setattr(erased_rows, "remove", interrupted)
        with pytest.raises(StorageError):
            erasure.erase(small.spec, request=name)
    assert not any(r["id"] == TEXT for r in small.table()), "some of it was removed"
    for _ in range(2):  # one that is repeated says the same
        result = erasure.erase(small.spec, request=name)
        assert result["partitions"] == [DAY] and result["files"] >= 2 and result["landed"]
        assert result["rows"] == {"published": 1, "labels": 1, "quarantine": 0, "predictions": 0, "served": 0}
        (*_, record) = ledger.records("small", LedgerKind.ERASURE)
        assert record["evidence"]["rows"] == result["rows"] and record["partition"] == DAY
    before = small.table()
    assert small.run(DAY, NEXT)["status"] == "unchanged", "the manifests say what the tables hold"
    again = small.run(DAY, NEXT, force=True)
    assert again["rows_out"] == 79 and small.table() == before
    assert not any(r["id"] == TEXT for kind in ("published", "labels") for r in small.table(kind))
    done = manifests.read("small", "data", DAY)
    assert done is not None and (done.rows_in, done.rows_out, done.quarantined) == (40, 39, 1)


def test_quarantine_that_hides_whose_a_row_is_is_counted(small: SmallModel) -> None:
    result = erasure.erase(small.spec, request=request(small, phone=PHONE))
    assert result["hidden"] == 1 and result["rows"]["quarantine"] == 0
    again = erasure.erase(small.spec, request=result["request"], hidden=True)
    assert again["hidden"] == 0 and again["rows"]["quarantine"] == 1 and small.table("quarantine") == []
    assert again["rows"]["published"] == 2, "all that the request removed"


def test_cells_that_quarantine_shows_are_compared(
    small: SmallModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path / "models"))
    toys.model(tmp_path / "models", "other", data={"columns": COLUMNS | {"seen_at": "timestamp"}})
    (small.lake / "features" / "gone-0123abcd").mkdir(parents=True)
    (small.lake / "reports" / "small" / "monitor").mkdir()
    result = erasure.erase(small.spec, request=request(small, amount="-1"))
    assert result["rows"]["quarantine"] == 1 and result["rows"]["published"] == 0
    assert result["reports"] > 0 and small.table("quarantine") == [], "data docs may quote such a column"
    assert result["other_models"] == ["other"]
    gone, reports = result["remaining"]
    assert gone == "feature table gone-0123abcd, whose folder is gone" and "reports/small/monitor" in reports


def test_the_log_of_an_earlier_release_loses_its_statistics(
    small_model: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_tables, "TABLE_PROPERTIES", {})
    content = rows(id=[TEXT] * 40).append_column(delta_tables.PARTITION, [[DAY] * 40])
    delta_tables.replace(delta_tables.table_uri("published", "small"), content, DAY)
    table = delta_tables.open_table(delta_tables.table_uri("published", "small"))
    assert table is not None
    table.create_checkpoint()
    logged = holding(small_model.lake / "published" / "small" / "_delta_log", TEXT)
    assert {name.partition(".")[2] for name in logged} == {"json", "checkpoint.parquet"}
    monkeypatch.undo()
    monkeypatch.setenv("PERENNIAL_LAKE", str(small_model.lake))
    erasure.erase(small_model.spec, request=request(small_model, id=TEXT))
    assert holding(small_model.lake, TEXT) == []
    assert small_model.table() == [], "the table can still be read"


def test_a_table_has_no_statistics_of_values_and_keeps_its_log(small: SmallModel) -> None:
    assert holding(small.lake / "published" / "small" / "_delta_log", TEXT, PHONE) == []
    table = delta_tables.open_table(delta_tables.table_uri("published", "small"))
    assert table is not None
    assert table.metadata().configuration["delta.logRetentionDuration"] == "interval 730 days"
    uri = delta_tables.table_uri("published", "small")
    generations.add_properties(uri, table, timedelta(days=3720))
    erased_rows.remove(uri, lambda _: "")
    generations.start(uri, delta_tables.arrow_schema(table), {"task": "other"}, "another task")
    table.update_incremental()
    properties = table.metadata().configuration
    assert properties["delta.logRetentionDuration"] == "interval 3720 days", (
        "as long as the spec keeps versions"
    )
    assert properties["delta.enableExpiredLogCleanup"] == "false"


def test_partitions_of_which_every_prediction_is_erased_are_named(small: SmallModel) -> None:
    uri = delta_tables.table_uri("predictions", "small")
    for day, ids in ((DAY, [TEXT]), (NEXT, [TEXT, "b"])):
        delta_tables.replace(uri, pa.table({"id": ids, delta_tables.PARTITION: [day] * len(ids)}), day)
    name = request(small, id=TEXT)
    for _ in range(2):
        result = erasure.erase(small.spec, request=name)
        assert (result["rows"]["predictions"], result["emptied"]) == (2, [DAY]), "b is somebody else"
    delta_tables.remove_rows(uri, [NEXT])  # as retention does
    assert erasure.erase(small.spec, request=name)["emptied"] == [DAY]


def test_a_file_without_a_column_of_the_key_is_named(small_model: SmallModel) -> None:
    for columns in (small_model.columns, small_model.label["columns"]):
        columns["line"] = "integer"
    small_model.changes = {"key": ["id", "line"]}
    uri = delta_tables.table_uri("published", "small")
    earlier = pa.table({"id": [TEXT], "phone": [PHONE], delta_tables.PARTITION: [DAY]})
    delta_tables.replace(uri, earlier, DAY)
    later = earlier.append_column("line", pa.array([1]))
    generations.start(uri, later.schema, {"task": "binary"}, "another key")
    delta_tables.replace(uri, later, DAY)
    result = erasure.erase(small_model.spec, request=request(small_model, phone=PHONE))
    assert (result["rows"]["published"], result["files"]) == (1, 2)
    assert [text for text in result["remaining"] if text.endswith("which lacks a column of data.key")]
    assert holding(small_model.lake, TEXT, PHONE) == []


def test_a_commit_that_was_killed_before_its_digests_is_completed(
    small: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, uri = request(small, id=TEXT), delta_tables.table_uri("published", "small")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(file_digests, "record_commit", killed)
        erasure.erase(small.spec, request=name)
    assert file_digests.unrecorded(uri, delta_tables.file_paths(uri))
    erasure.erase(small.spec, request=name)
    assert file_digests.unrecorded(uri, delta_tables.file_paths(uri)) == []


def test_a_young_file_that_may_be_committed_is_named_until_it_is_old(small: SmallModel) -> None:
    name, uri = request(small, id=TEXT), delta_tables.table_uri("published", "small")
    file = next(p for p in Path(uri).rglob("*.parquet") if TEXT in str(pq.ParquetFile(p).read()))
    young = file.with_name("part-00000-young.parquet")
    young.write_bytes(file.read_bytes())
    first = erasure.erase(small.spec, request=name)
    (text,) = (text for text in first["remaining"] if "part-00000-young" in text)
    assert "which a run may be writing: repeat this from 20" in text and young.exists()
    os.utime(young, (0, 0))
    again = erasure.erase(small.spec, request=name)
    assert again["files"] == first["files"] + 1 and not young.exists()
    assert not any("part-00000-young" in text for text in again["remaining"])


def test_nothing_is_erased_that_a_held_model_joins(
    empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    monkeypatch.setenv("PERENNIAL_MODELS", str(models))
    spec = toys.model(models, "source")
    history_table.write(models, source="source")
    toys.model(
        models,
        "joining",
        sql=history_table.MODEL_SQL,
        features={"tables": ["place_history"], "references": []},
    )
    name = erasure_keys.request_erasure(spec, [{"id": TEXT}], "ada").identifier
    holds.hold("joining", reason="audit", actor="grace")
    with pytest.raises(
        PerennialError, match=r"(?s)no rows of source are erased: grace holds.*release joining"
    ):
        erasure.erase(spec, request=name)
    assert erasure_requests.load("source", name).attempt is None
    holds.release("joining", reason="audit ended", actor="grace")
    erasure.erase(spec, request=name)


def test_requests_hold_no_key_and_name_their_secret(
    small: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = request(small, id=TEXT)
    assert name == request(small, id=TEXT), "the same keys are the same request"
    assert holding(small.lake / "erasures", TEXT) == []
    monkeypatch.setenv("PERENNIAL_ERASURE_SECRET", "another")
    with pytest.raises(PerennialError, match="another secret"):
        erasure.erase(small.spec, request=name)
    with pytest.raises(PerennialError, match="another secret"):
        small.run(force=True)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ({"amount": TEXT}, "key 1: the value of 'amount' is no number"),
        ({"mail": "x"}, "no column"),
        ({}, "the keys"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(small: SmallModel, key: dict[str, str], words: str) -> None:
    with pytest.raises(PerennialError, match=words) as raised:
        request(small, **key)
    assert TEXT not in str(raised.value)


def test_nothing_is_erased_while_the_model_is_held(small: SmallModel) -> None:
    name = request(small, id=TEXT)
    with pytest.raises(PerennialError, match="no reason"):
        holds.hold("small", reason=" ", actor="ada")
    first = holds.hold("small", reason="audit of 2020", actor="ada")
    holds.hold("small", reason="audit of 2021", actor="grace")
    with pytest.raises(PerennialError, match=r"ada holds the model .*: audit of 2020"):
        erasure.erase(small.spec, request=name)
    with pytest.raises(PerennialError, match="it is held 2 times"):
        holds.release("small", reason="audit ended", actor="ada")
    holds.release("small", reason="audit ended", actor="ada", number=first["sequence"])
    with pytest.raises(PerennialError, match=r"grace holds the model .*: audit of 2021"):
        erasure.erase(small.spec, request=name)
    with pytest.raises(PerennialError, match=f"hold {first['sequence']} is none that goes on"):
        holds.release("small", reason="audit ended", actor="ada", number=first["sequence"])
    holds.release("small", reason="audit ended", actor="grace")
    assert erasure.erase(small.spec, request=name)["rows"]["published"] == 1
    with pytest.raises(PerennialError, match="not held"):
        holds.release("small", reason="again", actor="ada")


def test_rows_that_another_run_writes_meanwhile_are_removed_too(
    small: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, written = request(small, id=TEXT), []
    before, replace = small.table(), delta_tables.Writer.replace

    def beside(self: Any, data: Any, start: str, *args: Any, **options: Any) -> int:
        version = replace(self, data, start, *args, **options)
        if not written and self.uri.endswith("published/small"):
            written.append(start)
            table = lake.read_table(self.uri, None, NEXT, NEXT)
            table = table.set_column(0, "id", [[TEXT] * 40])
            replace(delta_tables.Writer(self.uri), table, NEXT)
        return version

    monkeypatch.setattr(delta_tables.Writer, "replace", beside)
    result = erasure.erase(small.spec, request=name)
    assert result["rows"]["published"] == 41 and len(before) == 80 and len(small.table()) == 39


def test_keys_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.csv"
    file.write_text('id,place\n1,"a,b"\n\n2,c\n')
    assert erasure_keys.read_keys(file) == [{"id": "1", "place": "a,b"}, {"id": "2", "place": "c"}]
    assert erasure_keys.read_keys(None, ["id\n", "1\n"]) == [{"id": "1"}]
    with pytest.raises(PerennialError, match="line 2 of the keys has 1 cells"):
        erasure_keys.read_keys(None, ["a,b", TEXT])


def test_the_hash_of_duckdb_is_hmac(small: SmallModel) -> None:
    import hashlib
    import hmac

    secret = hashlib.sha256((small.lake / "erasures" / "secret").read_bytes()).digest() if request(
        small, id="x") else b""  # fmt: skip
    columns = {"id": "string", "count": "integer"}
    with duckdb.connect() as con:
        erasure_requests.provide_secret(con)
        ((digest,),) = con.sql(
            f"SELECT {erasure_requests.hash_sql(columns)} FROM (SELECT 'ä' AS id, 7.0 AS count)"
        ).fetchall()
        ((null,),) = con.sql(
            f"SELECT {erasure_requests.hash_sql({'id': 'string'})} FROM (SELECT NULL AS id)"
        ).fetchall()
        condition = erasure_requests.among_sql({"id": "string"}, [null])
        assert con.sql(f"SELECT {condition} FROM (SELECT NULL AS id)").fetchall() == [(False,)], "no key"
    padded = bytes(byte ^ 0x36 for byte in secret.ljust(64, b"\0"))
    assert padded.hex() not in condition, "text of SQL may be in an error's message"
    message = json.dumps(["count", "id"]) + '["7","ä"]'
    assert digest == hmac.new(secret, message.encode(), "sha256").hexdigest()


@pytest.mark.usefixtures("without_drift_report")
def test_predictions_and_logged_features_go_and_versions_are_named(world: Any) -> None:
    spec, day = world.spec, dates.add_days(toys.FIRST, 15)
    score(spec, start=day)
    (key, *_) = toys.content_of("predictions", spec.name)
    name = erasure_keys.request_erasure(spec, [{"id": key["id"]}], "ada").identifier
    result = erasure.erase(spec, request=name, actor="grace")
    assert result["rows"] == dict.fromkeys(("published", "labels", "predictions", "served"), 1) | {
        "quarantine": 0
    }
    version = world.result["version"]
    assert result["versions"] == [version] and result["champion"]
    assert score(spec, start=day)["status"] == "unchanged", "what is left counts as scored"
    (trained,) = (r for r in ledger.records(spec.name, LedgerKind.TRAINING) if r["model_version"] == version)
    ledger.append(spec.name, kind=LedgerKind.TRAINING, decision=Decision.ACCEPTED, reason="trained again", actor="test",
                  model_version="99", evidence=trained["evidence"])  # fmt: skip
    assert erasure.erase(spec, request=name)["versions"] == [version], (
        "the other was trained without the rows"
    )
    champion = registry.get_version(spec.name, version)
    signal = train_serve_skew.skew_signal(spec, champion, registry.load_model(champion), day, day)
    assert signal.state == "ok" and signal.evaluated == 1
    with pytest.raises(
        DataError, match=f"version {version} cannot be trained again: rows of its training were erased"
    ):
        reproduce(spec)


@pytest.mark.parametrize("when", ["fit_best_candidate", "train_result"])
def test_a_training_whose_rows_are_erased_meanwhile_leaves_no_version(
    world: Any, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    spec, step = world.spec, getattr(steps_train, when)
    (key, *_) = toys.content_of("published", spec.name)
    name = erasure_keys.request_erasure(spec, [{"id": key["id"]}], "ada").identifier
    before = len(ledger.records(spec.name, LedgerKind.TRAINING))
    made: list[str] = []

    def then_erased(*arguments: Any) -> Any:
        result = step(*arguments)
        made.extend([result["version"]] if when == "train_result" else [])
        erasure.erase(spec, request=name)
        return result

    with monkeypatch.context() as patch:
        toys.let_all_pass(patch)
        patch.setattr(steps_train, when, then_erased)
        with pytest.raises(
            DataReplacedError, match=f"rows of the training were erased.*request {name}"
        ) as raised:
            steps_train.train(spec, as_of=toys.LAST, force=True)
    assert time_heals(raised.value)
    (failed,) = ledger.records(spec.name, LedgerKind.TRAINING)[before:]
    assert failed["decision"] == "failed" and not failed["model_version"]
    assert [number for number in made if registry.find_version(spec.name, number)] == []
    assert registry.get_version_by_alias(spec.name, "challenger") is None
    assert set(promotion.in_use(spec)) == {world.result["version"]}, "what is in use is known"
    assert steps_train.train(spec, as_of=toys.LAST)["version"], "the next one reads what is left"


def test_versions_that_learned_features_of_the_rows_are_named_once(mlflow_home: Path, tmp_path: Path) -> None:
    models, name = tmp_path / "models", toys.unique("joining")
    joins = {"sql": history_table.MODEL_SQL, "features": {"tables": ["place_history"], "references": []}}
    spec = toys.model(models, toys.unique("source"))
    history_table.write(models, source=spec.name)
    toys.publish(spec)
    spec = toys.model(models, spec.name, **joins, training={"window": "4 days"})  # type: ignore[arg-type]
    joining = toys.model(models, name, **joins)  # type: ignore[arg-type]
    toys.publish(joining)
    numbers = [steps_train.train(model, as_of=toys.LAST)["version"] for model in (joining, spec)]
    first = registry.get_version(spec.name, numbers[1]).trained_range.start
    row = next(r for r in toys.content_of("published", spec.name) if r[delta_tables.PARTITION] < first)
    of_others = toys.content_of("published", name)
    request = erasure_keys.request_erasure(spec, [{"place": row["place"]}], "ada").identifier
    result = erasure.erase(spec, request=request, actor="grace")
    assert (result["joining"], result["versions"]) == ({name: [numbers[0]]}, [numbers[1]])
    assert f"train model {name} again: versions {numbers[0]} " in erasure.summarise(result)
    with pytest.raises(DataError, match=f"version {numbers[0]} cannot be trained again.*request {request}"):
        reproduce(joining, version=numbers[0])
    assert toys.content_of("published", name) == of_others
    again = steps_train.train(joining, as_of=toys.LAST)["version"]
    assert again != numbers[0]
    repeated = erasure.erase(spec, request=request)
    assert repeated["joining"] == {name: [numbers[0]]}, "the next one learned none of them"
