"""What auditors ask the ledger: who was champion, what made a prediction, and is it all still there."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from perennial.cli.app import app
from perennial.cli.governance import ledger_commands
from perennial.core import dates
from perennial.core.errors import DataError, LedgerError, StorageError
from perennial.core.settings import ROOT
from perennial.governance import champion_history, ledger_export, prediction_origin
from perennial.lifecycle import ledger_anchors
from perennial.modeling import registry, training_records
from perennial.spec import catalog
from perennial.steps.score import score
from perennial.storage import delta_tables, ledger
from perennial.storage.ledger import Decision, LedgerKind, LedgerRecord
from perennial.storage.ledger_table import chain, table_files
from support import toys

DAY = dates.add_days(toys.FIRST, 15)


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def make_chain(length: int, model: str = "toy") -> list[LedgerRecord]:
    """A right chain; every fifth record makes another version champion, a day later each."""
    made: list[LedgerRecord] = []
    previous = ledger.GENESIS
    for number in range(1, length + 1):
        is_promotion = number % 5 == 0
        row: dict[str, Any] = {
            "model": model,
            "sequence": number,
            "recorded_at": f"{dates.add_days('2024-01-01', number // 5)}T06:00:{number % 60:02}Z",
            "kind": str(LedgerKind.PROMOTION if is_promotion else LedgerKind.RETRAINING),
            "decision": str(Decision.PROMOTED if is_promotion else Decision.DECLINED),
            "reason": f"=why <{number}>",
            "evidence": chain.evidence_text({"n": number, "previous": str(number - 5)}),
            "actor": "gate",
            "partition": "2024-01-01",
            "model_version": str(number) if is_promotion else "",
            "previous": previous,
        }
        row["hash"] = previous = chain.row_hash(row)
        made.append({**row, "evidence": json.loads(row["evidence"])})  # type: ignore[typeddict-item]
    return made


def store(records: list[LedgerRecord], file_rows: int) -> None:
    """Write records to the table, some in each file, with the file of the last one."""
    from deltalake import write_deltalake

    rows = [{**r, "evidence": chain.evidence_text(r["evidence"])} for r in records]
    for at in range(0, len(rows), file_rows):
        table = pa.Table.from_pylist(rows[at : at + file_rows], table_files.schema())
        write_deltalake(ledger.uri(), table, mode="append", partition_by=["model"])
    head = Path(ledger.head_uri(records[-1]["model"]))
    head.parent.mkdir(parents=True, exist_ok=True)
    head.write_text(json.dumps({"sequence": records[-1]["sequence"], "hash": records[-1]["hash"]}))


RIGHT = make_chain(12)


def edited(record: LedgerRecord, field: str) -> LedgerRecord:
    """A record with a field changed, and its hash as it was, or right again."""
    value: Any = (
        {"n": 0} if field == "evidence" else record["sequence"] + 1 if field == "sequence" else "x" * 64
    )
    return {**record, field: value}  # type: ignore[typeddict-item]


@given(data=st.data())
@settings(max_examples=200)
def test_every_edit_gap_reorder_and_insertion_is_found(data: st.DataObject) -> None:
    records = list(RIGHT)
    kind = data.draw(
        st.sampled_from(["edit", "edit with hash", "gap", "swap", "insert", "repeat", "no start"])
    )
    at = data.draw(st.integers(0, len(records) - 2))
    if kind.startswith("edit"):
        record = edited(records[at], data.draw(st.sampled_from([*chain.FIELDS, "hash"])))
        if kind == "edit with hash":
            row = {**record, "evidence": chain.evidence_text(record["evidence"])}
            record = {**record, "hash": chain.row_hash(row)}
            # whoever repairs a record's hash contradicts the next one, unless nothing was changed
            if record["hash"] == records[at]["hash"]:
                return
        records[at] = record
    elif kind == "gap":
        del records[at]
    elif kind == "swap":
        other = data.draw(st.integers(at + 1, len(records) - 1))
        records[at], records[other] = records[other], records[at]
    elif kind == "insert":
        records.insert(at, edited(records[at], "reason"))
    elif kind == "repeat":
        records.insert(at, records[at])
    else:
        records = records[at + 1 :]
    with pytest.raises(LedgerError, match="was changed, or one before it is missing"):
        chain.check_chain("toy", records)


def test_a_truncated_ledger_is_found_by_its_head(empty_home: Path) -> None:
    assert chain.check_chain("toy", RIGHT[:-1]) == (11, "")  # right in itself
    store(RIGHT[:-1], 4)
    head = Path(ledger.head_uri("toy"))
    head.write_text(json.dumps({"sequence": 12, "hash": RIGHT[-1]["hash"]}))
    printed = run("ledger", "verify", "toy", "--json")
    assert printed.exit_code == 1
    (finding,) = json.loads(printed.stdout)["toy"]["findings"]
    assert finding.startswith("the ledger has 11 records and had 12: the last ones are missing")


def test_the_champion_of_a_day_is_that_at_its_end(empty_home: Path) -> None:
    store(make_chain(12), 4)  # champions: 5 from 2 January, 10 from 3 January
    answers = {day: champion_history.champion_at("toy", day).version for day in
               ("2024-01-01", "2024-01-02", "2024-01-03", "2024-02-01")}  # fmt: skip
    assert answers == {"2024-01-01": "", "2024-01-02": "5", "2024-01-03": "10", "2024-02-01": "10"}
    moments = {text: champion_history.champion_at("toy", text).version for text in
               ("2024-01-02T06:00:04", "2024-01-02T06:00:05Z", "2024-01-02T07:00:05+01:00")}  # fmt: skip
    assert list(moments.values()) == ["", "5", "5"]
    printed = run("ledger", "champion", "toy", "--on", "2024-01-03")
    assert "version 10" in printed.stdout and "replaced    version 5" in printed.stdout
    assert (
        "had no champion before 2024-01-02T00:00:00Z"
        in run("ledger", "champion", "toy", "--on", "2024-01-01").stdout
    )
    for text, cause in {"2999-01-01": "in the future", "Monday": "neither a day nor a moment"}.items():
        with pytest.raises(DataError, match=cause):
            champion_history.champion_at("toy", text)


def test_a_search_reads_the_files_of_its_records_only(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(make_chain(40), 4)
    opened: list[int] = []
    true_read = table_files.read_columns

    def counted(model: str, files: Any, columns: list[str], condition: Any = None) -> pa.Table:
        if "evidence" in columns:
            opened.append(len(files))
        return true_read(model, files, columns, condition)

    monkeypatch.setattr(table_files, "read_columns", counted)
    (record,) = ledger.find("toy", LedgerKind.PROMOTION, until="2024-01-05", last=1)
    assert record["model_version"] == "15" and opened == [1]
    assert ledger.last("toy") == (40, make_chain(40)[-1]["hash"]), "of a file with several records, too"
    assert [r["sequence"] for r in ledger.iterate("toy")] == list(range(1, 41))


def test_many_small_files_are_merged_and_the_chain_goes_on(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "MERGED_FILES", 4)
    store(RIGHT[:3], 1)
    assert not ledger.merge_files("toy")
    store(RIGHT[3:], 1)
    before = ledger.records("toy")
    assert ledger.merge_files("toy") and len(table_files.of_model("toy")) == 1
    assert ledger.records("toy") == before == RIGHT
    monkeypatch.setattr(ledger, "_read", lambda *_: pytest.fail("all records were read"))
    ledger.append("toy", kind=LedgerKind.ALERTING, decision=Decision.MUTED, reason="", actor="ada")
    assert ledger.verify("toy") == 13


def test_a_merge_deletes_merged_files_later_and_gives_an_earlier_table_its_properties(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deltalake creates a table with none, whose log it would delete after 30 days."""
    from deltalake import DeltaTable

    monkeypatch.setattr(table_files, "MERGED_FILES", 4)
    store(RIGHT[:3], 1)
    assert DeltaTable(ledger.uri()).metadata().configuration == {}
    assert not ledger.merge_files("toy")
    assert DeltaTable(ledger.uri()).metadata().configuration == {
        **delta_tables.TABLE_PROPERTIES,
        **table_files.PROPERTIES,
    }
    store(RIGHT[3:], 1)
    assert ledger.merge_files("toy") and ledger.verify("toy") == 12

    def stored() -> int:
        return len(list(Path(ledger.uri()).rglob("*.parquet")))

    assert stored() == 13, "who has begun to read the merged files can go on"
    monkeypatch.setattr(table_files, "MERGED_HOURS", 0)
    store(make_chain(16)[12:], 1)
    assert ledger.merge_files("toy") and stored() == 1
    assert ledger.verify("toy") == 16
    version = DeltaTable(ledger.uri()).version()
    assert not ledger.merge_files("toy") and DeltaTable(ledger.uri()).version() == version


def test_a_merge_deletes_no_files_of_another_model(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its merged file may be damaged."""
    monkeypatch.setattr(table_files, "MERGED_FILES", 4)
    for model in ("good", "bad"):
        store(make_chain(4, model), 1)

    def files(model: str) -> list[Path]:
        return list(Path(ledger.uri(), f"model={model}").iterdir())

    originals = files("bad")
    assert ledger.merge_files("bad")
    (merged,) = {*files("bad")} - {*originals}
    merged.write_bytes(b"x")
    with pytest.raises(StorageError):
        ledger.verify("bad")
    monkeypatch.setattr(table_files, "MERGED_HOURS", 0)
    assert ledger.merge_files("good") and ledger.verify("good") == 4
    assert len(files("good")) == 1 and {*files("bad")} == {merged, *originals}


def test_the_hash_is_that_of_the_last_record_that_was_verified(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_anchors, "contradictions", lambda _: [])
    store(RIGHT[:3], 3)
    verify = ledger.verify

    def verify_and_append(model: str) -> int:
        count = verify(model)
        ledger.append(model, kind=LedgerKind.ALERTING, decision=Decision.MUTED, reason="", actor="ada")
        return count

    monkeypatch.setattr(ledger, "verify", verify_and_append)
    assert ledger_commands.verify_ledger("toy") == {"records": 3, "hash": RIGHT[2]["hash"], "findings": []}


def test_verify_looks_at_every_ledger_and_says_if_there_is_none(
    empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "model_tags", lambda _: {})
    for name in ("gone", "rewritten"):
        anchor = tmp_path / "anchors" / name / f"{2:09d}-{'a' * 64}.json"
        anchor.parent.mkdir(parents=True)
        anchor.write_text("{}")
    monkeypatch.setenv("PERENNIAL_LEDGER_ANCHORS", str(tmp_path / "anchors"))
    (tmp_path / "models" / "faulty").mkdir(parents=True)
    (tmp_path / "models" / "faulty" / "model.yaml").write_text("owner: [")
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path / "models"))
    for name in ("removed", "rewritten"):
        store(make_chain(3, name), 3)
    changed = make_chain(3, "faulty")
    store([changed[0], edited(changed[1], "reason"), changed[2]], 3)
    printed = run("ledger", "verify", "--json")
    results = json.loads(printed.stdout)
    assert printed.exit_code == 1
    assert [name for name, result in results.items() if result["findings"]] == ["faulty", "gone", "rewritten"]
    assert results["gone"]["findings"][0].startswith("the ledger has 0 records and had 2")
    assert "record 2 of the ledger was changed" in results["faulty"]["findings"][0]
    assert (results["removed"]["records"], results["removed"]["hash"]) == (
        3,
        make_chain(3, "removed")[-1]["hash"],
    )
    assert results["flight_late"] == {"records": 0, "hash": "", "findings": []}
    documented = (ROOT / "docs" / "governance.md").read_text()
    (expression,) = re.findall(r"ledger verify --json \| jq -r '(.*?)'\n", documented, re.DOTALL)
    if jq := shutil.which("jq"):
        since = subprocess.run(
            [jq, "-r", expression], input=printed.stdout, capture_output=True, text=True, check=True
        )
        assert since.stdout.split() == [f"removed=3:{results['removed']['hash']}"]
    printed = run("ledger", "verify", "flight_lat", "--json")
    assert printed.exit_code == 1
    assert (
        "its ledger has no records: check the name" in json.loads(printed.stdout)["flight_lat"]["findings"][0]
    )


def test_an_export_without_records_or_of_another_model_is_not_good(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text("[]")
    with pytest.raises(LedgerError, match="is no JSON export of a ledger with records"):
        ledger_export.verify_file(tmp_path / "l.json")
    (tmp_path / "l.json").write_text("".join(ledger_export.to_json("toy", RIGHT)))
    answer = run("ledger", "verify", "flights", "--file", str(tmp_path / "l.json"))
    assert "is the ledger of toy, not of flights" in str(answer.exception)


def test_exports_hold_every_record_and_json_can_be_verified_without_the_lake(
    empty_home: Path, tmp_path: Path
) -> None:
    store(RIGHT, 5)
    for form in ledger_export.FORMATS:
        printed = run("ledger", "export", "toy", "--format", form, "--out", str(tmp_path / f"l.{form}"))
        assert printed.exit_code == 0, printed.output
    rows = list(csv.DictReader(io.StringIO((tmp_path / "l.csv").read_text())))
    assert [r["hash"] for r in rows] == [r["hash"] for r in RIGHT]
    assert rows[0]["reason"] == "'=why <1>", "a spreadsheet computes nothing"
    page = (tmp_path / "l.html").read_text()
    assert page.count("<tr>") == 13 and "=why &lt;12&gt;" in page and RIGHT[-1]["hash"] in page
    shutil.rmtree(ledger.uri())
    verified = run("ledger", "verify", "--file", str(tmp_path / "l.json"))
    assert (
        verified.exit_code == 0
        and f"12 records of toy; the chain of hashes is intact. The last hash is {RIGHT[-1]['hash']}"
        in verified.stdout
    )
    text = (tmp_path / "l.json").read_text()
    (tmp_path / "l.json").write_text(text.replace("=why <7>", "=why not"))
    with pytest.raises(LedgerError, match="record 7 of the ledger was changed"):
        ledger_export.verify_file(tmp_path / "l.json")
    (tmp_path / "l.json").write_text("[1]")
    with pytest.raises(LedgerError, match="is no JSON export of a ledger"):
        ledger_export.verify_file(tmp_path / "l.json")


def test_an_export_can_be_of_some_days_and_of_a_kind(empty_home: Path) -> None:
    store(RIGHT, 5)
    words = (
        "ledger",
        "export",
        "toy",
        "--kind",
        "promotion",
        "--since",
        "2024-01-03",
        "--until",
        "2024-01-03",
    )
    (record,) = json.loads(run(*words).stdout)
    assert record == RIGHT[9]


def test_a_prediction_is_traced_to_model_data_code_features_and_approval(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = world.spec
    score(spec, start=DAY, run_id="nightly")
    key = toys.rows("binary", DAY)["id"][3].as_py()
    version = registry.get_version(spec.name, world.result["version"])
    recorded = registry.recorded(version)
    ledger.append(
        spec.name, kind=LedgerKind.APPROVAL, decision=Decision.APPROVED, reason="approved by ada: good", actor="ada",
        model_version=version.version, evidence={"run_id": version.run_id},
    )  # fmt: skip
    ledger.append(
        spec.name, kind=LedgerKind.APPROVAL, decision=Decision.DECLINED, reason="of another training", actor="ada",
        model_version=version.version, evidence={"run_id": "other"},
    )  # fmt: skip
    origin = prediction_origin.find_origin(spec, DAY, {"id": key})
    assert (origin.version, origin.role) == (version.version, "champion")
    assert origin.model_digest == world.result["digest"] == recorded.digests[training_records.MODEL_FILE]
    assert origin.recipe_digest == recorded.digests["recipe.json"]
    assert origin.spec_digest == spec.digest and origin.data.startswith("published@")
    assert origin.tables_at_scoring.keys() == {r.name for r in spec.references}
    assert origin.approval is not None and origin.approval["actor"] == "ada"
    assert origin.approval["reason"] == "approved by ada: good"
    assert origin.promotion is not None and origin.promotion["decision"] == Decision.PROMOTED
    assert origin.scored_by == "nightly" and origin.training["partition"] == toys.LAST
    monkeypatch.setattr(catalog, "load_model_by_name", lambda _: spec)
    printed = run("ledger", "prediction", spec.name, DAY, key)
    assert printed.exit_code == 0, printed.output
    for text in (world.result["digest"], spec.digest, "approved by ada", "nightly", "perennial reproduce"):
        assert text in printed.stdout
    with pytest.raises(DataError, match="has not been scored"):
        prediction_origin.find_origin(spec, toys.FIRST, {"id": key})


def test_a_prediction_of_an_unknown_training_is_refused(world: Any) -> None:
    spec = world.spec
    score(spec, start=DAY)
    shutil.rmtree(ledger.uri())
    with pytest.raises(DataError, match="no training of the model file that made this prediction"):
        prediction_origin.find_origin(spec, DAY, {"id": toys.rows("binary", DAY)["id"][3].as_py()})


def test_what_the_command_line_records_is_anchored_at_once(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "load_model_by_name", lambda _: world.spec)
    words = ("--until", dates.add_days(dates.utc_now()[:10], 3), "--reason", "a known fault")
    assert run("mute", world.spec.name, "features", *words).exit_code == 0
    sequence, digest = ledger.last(world.spec.name)
    assert ledger.records(world.spec.name)[-1]["decision"] == "muted"
    assert registry.model_tags(world.spec.name)[ledger_anchors.TAG] == f"{sequence}:{digest}"
