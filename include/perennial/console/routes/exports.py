"""Files to download: quarantined rows, the ledger, and manifests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from fastapi import HTTPException, Request, Response
from fastapi.responses import StreamingResponse

from perennial.console import access, overview, rendering, report_files
from perennial.console.access import User
from perennial.console.views import ledger_records
from perennial.governance import ledger_export
from perennial.status import quarantine_rows
from perennial.status.quarantine_rows import MAX_ROWS
from perennial.storage import ledger, manifests

_CSV, _JSON = "text/csv; charset=utf-8", "application/json"


def export_quarantine(request: Request, model: str, partition: str, user: User) -> Response:
    """The rows in quarantine, without values of personal columns."""
    access.authorise(request, model, user)
    content = quarantine_rows.read(overview.load_spec(model), partition, MAX_ROWS)
    return _file(f"{model}-quarantine-{content.partition}.csv", quarantine_rows.to_csv(content), _CSV)


def export_ledger_csv(request: Request, model: str, user: User, kind: str = "") -> Response:
    """All records of a kind as CSV."""
    access.authorise(request, model, user)
    records = ledger_records.of_kind(ledger.records(model), kind)
    return _file(f"{model}-ledger.csv", ledger_export.to_csv(model, records), _CSV)


def export_ledger_json(request: Request, model: str, user: User, kind: str = "") -> Response:
    """All records of a kind as JSON, one a line; of all kinds, their hashes can be verified."""
    access.authorise(request, model, user)
    records = ledger_records.of_kind(ledger.records(model), kind)
    return _file(f"{model}-ledger.json", ledger_export.to_json(model, records), _JSON)


def export_manifest(request: Request, model: str, step: str, key: str, user: User) -> Response:
    """The manifest of what a step wrote for a partition: inputs, tables with their versions, rows, code."""
    access.authorise(request, model, user)
    if not (report_files.is_plain_name(step) and report_files.is_plain_name(key)):
        raise HTTPException(404, "There is no such manifest.")
    manifest = manifests.read(model, step, key)
    if manifest is None:
        raise HTTPException(404, f"{step} of {model} has not finished {key}.")
    content = json.dumps(asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False)
    return _file(f"{model}-{step}-{key}.json", iter([content]), _JSON)


def _file(name: str, lines: Iterator[str], media_type: str) -> Response:
    headers = rendering.HEADERS | {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(lines, 200, headers, media_type)
