"""Verification of what a model's decisions rest on: ledger, champion, signatures, manifests, data files.

Steps compare what they read with recorded digests. This also finds what nobody has read for a while, and damage that
does not change a file's time, such as a disk's.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict

from perennial.core import signing_keys
from perennial.core.errors import ArtifactError, PerennialError
from perennial.core.settings import settings
from perennial.lifecycle import champion, ledger_anchors, trials
from perennial.modeling import registry, training_records
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, file_digests, ledger, manifests, object_store
from perennial.storage.ledger import Decision, LedgerKind

log = logging.getLogger("perennial")
#: Findings that a ledger record and a message contain.
MAX_FINDINGS = 20


class VerificationResult(TypedDict):
    """What `verify_model` found.

    Attributes:
        records: number of the ledger's records.
        manifests: number of manifests that were read.
        files: number of data files that were compared with their digests.
        recorded: number of data files whose digests were missing and were recorded.
        findings: a sentence for each thing that is not what was written.
    """

    records: int
    manifests: int
    files: int
    recorded: int
    findings: list[str]


def verify_model(spec: ModelSpec, *, actor: str, record: bool = False) -> VerificationResult:
    """Verify everything that is stored of a model; new findings are recorded in the ledger.

    Args:
        spec: the model.
        actor: who or what verifies, for the ledger.
        record: record the digest of each data file that has none, as the file is now.
    """
    findings: list[str] = []
    records = 0
    try:
        records = ledger.verify(spec.name)
        findings += ledger_anchors.contradictions(spec.name)
        ledger_anchors.write(spec.name)
        if not findings:
            _merge_ledger(spec.name)
    except PerennialError as error:
        findings.append(error.cause)
    findings += _champion_findings(spec)
    findings += _signature_findings(spec)
    read, manifest_findings = _manifest_findings(spec)
    files, recorded, file_findings = _file_findings(spec, record)
    findings = list(dict.fromkeys(findings + manifest_findings + file_findings))
    try:
        with ledger_anchors.anchored(spec.name):
            _record(spec, actor, findings)
    except PerennialError as error:
        findings.append(f"the findings could not be recorded: {error.cause}")
    return {
        "records": records,
        "manifests": read,
        "files": files,
        "recorded": recorded,
        "findings": findings,
    }


def _merge_ledger(model: str) -> None:
    """Merge the ledger's small files; whoever may only read cannot, and nothing is wrong with the ledger then."""
    try:
        ledger.merge_files(model)
    except PerennialError as error:
        log.warning("The ledger's files of %s could not be merged: %s", model, error.cause)


def _champion_findings(spec: ModelSpec) -> list[str]:
    """How MLflow differs from the ledger, and which files of the versions in use are not what was recorded."""
    findings = []
    try:
        state = champion.finish_killed(spec, champion.read_state(spec))
        if state.deviation:
            findings.append(state.deviation)
        trial = trials.active_trial(spec)
        for number in {state.recorded, trial["model_version"] if trial else None} - {None}:
            version = registry.find_version(spec.name, str(number))
            if version is not None:
                registry.check_files(version)
            elif not state.deviation:
                findings.append(f"version {number}, which is in use, was deleted in MLflow")
    except PerennialError as error:
        findings.append(error.cause)
    return findings


def _signature_findings(spec: ModelSpec) -> list[str]:
    """Which versions, of those that MLflow has, are without a signature of a trusted key."""
    findings: list[str] = []
    try:
        if signing_keys.trusted_keys() is None:
            return []
        for record in training_records.all_records(spec.name):
            version = registry.find_version(spec.name, record.version)
            if version is None or version.run_id != record.run_id or not record.digests:
                continue
            try:
                registry.check_signature(version, again=True)
            except ArtifactError as error:
                findings.append(error.cause)
    except PerennialError as error:
        findings.append(error.cause)
    return findings


def _manifest_findings(spec: ModelSpec) -> tuple[int, list[str]]:
    """How many manifests there are, and which of them are not what a step wrote."""
    folder = f"{settings().lake}/manifests/{spec.name}"
    files = object_store.list_files(folder, recursive=True)
    # Deeper are records of failures.
    keys = [path.removesuffix(".json") for path in files if path.endswith(".json") and path.count("/") == 1]

    def finding(key: str) -> str:
        step, _, partition = key.partition("/")
        try:
            manifests.read(spec.name, step, partition)
        except PerennialError as error:
            return f"{error.cause}: {error.remedy}"
        return ""

    with ThreadPoolExecutor(file_digests.PARALLEL, thread_name_prefix="manifest") as pool:
        return len(keys), [text for text in pool.map(finding, keys) if text]


def _file_findings(spec: ModelSpec, record: bool) -> tuple[int, int, list[str]]:
    """How many data files there are, how many digests were recorded, and which files differ from theirs."""
    files = recorded = 0
    findings: list[str] = []
    for uri in _tables(spec):
        try:
            paths = delta_tables.file_paths(uri)
            if record and (unknown := file_digests.unrecorded(uri, paths)):
                file_digests.record(uri, unknown)
                recorded += len(unknown)
            files += len(paths)
            findings += [f"{uri}/{path} {what}" for path, what in file_digests.scrub(uri, paths).items()]
        except PerennialError as error:
            findings.append(error.cause)
    return files, recorded, findings


def _tables(spec: ModelSpec) -> list[str]:
    """The tables of a model, its reference tables, and its feature tables."""
    from perennial.features import feature_tables, reference_tables  # not at the top: they import DuckDB

    tables = [delta_tables.table_uri(kind, spec.name) for kind in delta_tables.KINDS]
    tables += [reference_tables.uri(reference) for reference in spec.references]
    return tables + [feature_tables.uri(table) for _, table in spec.feature_tables]


def _record(spec: ModelSpec, actor: str, findings: list[str]) -> None:
    """Record findings in the ledger, unless its last record says the same; and once that there are none any more."""
    records = ledger.records(spec.name, LedgerKind.VERIFICATION)
    last: list[Any] = records[-1]["evidence"].get("findings", []) if records else []
    named = findings[:MAX_FINDINGS]
    if named != last:
        ledger.append(
            spec.name,
            kind=LedgerKind.VERIFICATION,
            decision=Decision.REPORTED if findings else Decision.RESOLVED,
            reason=summarise(findings),
            actor=actor,
            evidence={"findings": named, "count": len(findings)},
        )


def summarise(findings: list[str]) -> str:
    """The findings in one sentence."""
    if not findings:
        return "everything is what was written"
    more = f" (and {len(findings) - 1} more; run perennial verify)" if len(findings) > 1 else ""
    return f"{findings[0]}{more}"
