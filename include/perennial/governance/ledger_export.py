"""The ledger as files for auditors: CSV for spreadsheets, JSON that can be verified, HTML to read and to print."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from perennial.core.dates import utc_now
from perennial.core.errors import LedgerError
from perennial.core.html import escape
from perennial.status.quarantine_rows import without_formula
from perennial.storage.ledger import FIELDS, LedgerRecord
from perennial.storage.ledger_table import chain

#: Columns of the page, with their headings.
_HTML_COLUMNS = {
    "sequence": "#", "recorded_at": "recorded (UTC)", "partition": "partition", "kind": "kind",
    "decision": "decision", "model_version": "version", "actor": "actor", "reason": "reason",
}  # fmt: skip
_STYLE = (
    "body{font:14px/1.4 system-ui,sans-serif;margin:2rem;color:#1b1f24}table{border-collapse:collapse;width:100%}"
    "th,td{border:1px solid #c8ccd1;padding:.3rem .5rem;text-align:left;vertical-align:top}"
    "code,pre{font:12px/1.4 ui-monospace,monospace;overflow-wrap:anywhere;white-space:pre-wrap}"
    "@media print{details{display:block}thead{display:table-header-group}}"
)


def to_csv(model: str, records: Iterable[LedgerRecord]) -> Iterator[str]:
    """The records as lines of a CSV file, evidence as JSON. A cell that a spreadsheet would compute begins with '."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([*FIELDS, "hash"])
    for record in records:
        row: dict[str, Any] = {**record, "evidence": chain.evidence_text(record["evidence"])}
        writer.writerow([without_formula(str(row[name])) for name in (*FIELDS, "hash")])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def to_json(model: str, records: Iterable[LedgerRecord]) -> Iterator[str]:
    """The records as a JSON array, one a line, with all that the hash of each covers."""
    separator = "[\n"
    for record in records:
        yield f"{separator}{json.dumps(record, sort_keys=True)}"
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def to_html(model: str, records: Iterable[LedgerRecord]) -> Iterator[str]:
    """The records as one page that needs no other file."""
    title = f"Ledger of {escape(model)}"
    yield (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n<p>Written {utc_now()}. Each record has the hash of "
        "the one before it; <code>perennial ledger verify</code> checks them.</p>\n<table><thead><tr>"
        + "".join(
            f'<th scope="col">{heading}</th>' for heading in (*_HTML_COLUMNS.values(), "evidence, hash")
        )
        + "</tr></thead><tbody>\n"
    )
    for record in records:
        row = dict(record)
        cells = "".join(f"<td>{escape(row[name])}</td>" for name in _HTML_COLUMNS)
        evidence = escape(json.dumps(record["evidence"], indent=1, sort_keys=True, ensure_ascii=False))
        yield (
            f"<tr>{cells}<td><details><summary>evidence</summary><pre>{evidence}</pre></details>"
            f"<code>{escape(record['hash'])}</code></td></tr>\n"
        )
    yield "</tbody></table></body></html>\n"


class ExportFormat(StrEnum):
    """Formats of an export."""

    CSV = "csv"
    JSON = "json"
    HTML = "html"


FORMATS: dict[str, Callable[[str, Iterable[LedgerRecord]], Iterator[str]]] = {
    ExportFormat.CSV: to_csv,
    ExportFormat.JSON: to_json,
    ExportFormat.HTML: to_html,
}


def verify_file(path: Path) -> tuple[str, int, str]:
    """Check the chain of a JSON export, without the lake.

    Returns:
        The model, how many records there are, and the hash of the last one.

    Raises:
        LedgerError: a record was changed, is missing or out of order; or it is no export.
    """
    try:
        records: list[LedgerRecord] = json.loads(path.read_text("utf-8"))
        if not records:
            raise ValueError("no record")
        model = str(records[0]["model"])
        if not all(record.keys() == {*FIELDS, "hash"} for record in records):
            raise ValueError("a record has other fields")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LedgerError(
            f"{path} is no JSON export of a ledger with records ({type(error).__name__})",
            "make one with `perennial ledger export MODEL --format json`",
        ) from None
    count, digest = chain.check_chain(model, records, len(records))
    return model, count, digest
