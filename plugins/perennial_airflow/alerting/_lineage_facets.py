"""OpenLineage's facets: what they say of datasets, runs and jobs. Imported only where an event is sent."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from openlineage.client.facet_v2 import (
    JobFacet,
    RunFacet,
    data_quality_assertions_dataset,
    dataset_version_dataset,
    output_statistics_output_dataset,
    ownership_job,
    schema_dataset,
    source_code_location_job,
)

from perennial.core import runtime
from perennial.spec.strict_model import FolderSpec
from perennial.storage import object_store
from perennial.validation import data_docs

#: Name of the facet of a run that says what became of the model, and the schema of its content.
MODEL_FACET = "perennial_model"
MODEL_FACET_SCHEMA = "urn:perennial:openlineage:PerennialModelRunFacet:1-0-0"
#: Partitions of a run whose expectations are reported: the latest ones.
MAX_VALIDATED = 100
#: How results of a step are called in the facet.
_OF_RESULT = {"digest": "digest", "previous": "previous_version", "status": "status", "verdict": "verdict"}


class PerennialModelRunFacet(RunFacet):
    """What a task did with a model; docs/alerts-and-metrics.md describes its fields."""

    @staticmethod
    def _get_schema() -> str:
        return MODEL_FACET_SCHEMA


def schema(columns: Mapping[str, str]) -> schema_dataset.SchemaDatasetFacet:
    """The columns of a dataset, with their types."""
    fields = [
        schema_dataset.SchemaDatasetFacetFields(name, kind, ordinal_position=i)
        for i, (name, kind) in enumerate(columns.items(), 1)
    ]
    return schema_dataset.SchemaDatasetFacet(fields)


def version(number: object) -> dataset_version_dataset.DatasetVersionDatasetFacet:
    """The version of a dataset."""
    return dataset_version_dataset.DatasetVersionDatasetFacet(str(number))


def row_count(rows: int) -> output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet:
    """How many rows were written."""
    return output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=rows)


def model_facet(
    spec: FolderSpec, task: str, result: Mapping[str, Any], version: object, partitions: Iterable[str]
) -> RunFacet:
    """What a task did with a model: numbers of versions, digests and outcomes, and no sentence.

    Args:
        spec: the model.
        task: id of the task.
        result: what the task returned.
        version: version of the model that it made, moved or used; None without one.
        partitions: keys of the partitions that it concerns.
    """
    facts: dict[str, Any] = {name: result.get(key) for key, name in _OF_RESULT.items()}
    facts["version"] = version
    if gate := result.get("gate"):
        facts["gate"] = {"passed": gate["passed"], "champion": gate["champion"]}
    for name in ("promoted", "retrain", "proposed"):
        facts[name] = result.get(name)
    if days := sorted(partitions):
        facts["partitions"] = {"first": days[0], "last": days[-1], "count": len(days)}
    known = {name: value for name, value in facts.items() if value is not None}
    named: Any = spec
    return PerennialModelRunFacet().with_additional_properties(  # type: ignore[return-value]
        model=named.name, task=named.task, step=task, spec_digest=named.digest,
        code_version=runtime.code_version(), **known,
    )  # fmt: skip


def assertions(
    model: str, partitions: Iterable[str]
) -> data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet | None:
    """The expectations' results on the rows of some partitions, from their data docs; None if there are none.

    No observed value and no argument is part of it: both may be values of the data.

    Args:
        model: name of the model.
        partitions: keys of the partitions.
    """
    latest = sorted(partitions)[-MAX_VALIDATED:]
    with ThreadPoolExecutor(8, thread_name_prefix="data-doc") as pool:
        documents = [d for d in pool.map(lambda day: _data_doc(model, day), latest) if d]
    results: dict[tuple[int, str, str], list[dict[str, Any]]] = defaultdict(list)
    for document in documents:
        positions: dict[tuple[str, str], int] = defaultdict(int)
        for entry in document.get("results", ()):  # none if it could not be drawn
            config = entry["expectation_config"]
            identity = (config["type"], str(config["kwargs"].get("column") or ""))
            results[positions[identity], *identity].append(entry)
            positions[identity] += 1
    if not results:
        return None
    listed = [_assertion(kind, column, entries) for (_, kind, column), entries in results.items()]
    return data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet(listed)


def _data_doc(model: str, day: str) -> dict[str, Any] | None:
    """The result of a partition's validation, as JSON; None if there is none, or it cannot be parsed."""
    try:
        return cast(
            "dict[str, Any]", json.loads(object_store.read_text(data_docs.data_doc_uri(model, day, "json")))
        )
    except (FileNotFoundError, ValueError):
        return None


def _assertion(
    kind: str, column: str, entries: list[dict[str, Any]]
) -> data_quality_assertions_dataset.Assertion:
    """One expectation, with its results on several partitions."""
    failed = sum(not entry["success"] for entry in entries)
    bad_rows = sum(int((entry.get("result") or {}).get("unexpected_count") or 0) for entry in entries)
    severity = entries[-1]["expectation_config"].get("severity") or "critical"
    return data_quality_assertions_dataset.Assertion(
        assertion=kind,
        success=not failed,
        column=column or None,
        severity="error" if severity == "critical" else "warn",
        params={"partitions": len(entries), "failed_partitions": failed, "unexpected_rows": bad_rows},
    )


def job_facets(
    owner: str, location: source_code_location_job.SourceCodeLocationJobFacet | None
) -> dict[str, JobFacet]:
    """Who is responsible for a job, and where the folder is that defines it, if that is known."""
    facets: dict[str, JobFacet] = {
        "ownership": ownership_job.OwnershipJobFacet([ownership_job.Owner(owner, "OWNER")])
    }
    if location:
        facets["sourceCodeLocation"] = location
    return facets


def source_location(folder: Path) -> source_code_location_job.SourceCodeLocationJobFacet | None:
    """Commit and path of a folder in its Git repository; None if it is in none, and the commit is not known.

    In an image, `PERENNIAL_COMMIT` is the commit. The address of the repository is that of its remote ``origin``,
    without user and password.
    """
    checkout = runtime.find_git_checkout(folder)
    commit, address, path = os.environ.get("PERENNIAL_COMMIT", ""), "", None
    if checkout:
        path = folder.resolve().relative_to(checkout.root).as_posix()
        commit = checkout.commit or commit
        address = web_address(checkout.remote)
    if not commit:
        return None
    url = f"{address}/tree/{commit}/{path}" if address and path else folder.resolve().as_uri()
    return source_code_location_job.SourceCodeLocationJobFacet(
        "git", url, repoUrl=address or None, path=path, version=commit
    )


def web_address(remote: str) -> str:
    """The web address of a Git remote, without user and password; empty if it has none."""
    if "://" not in remote:
        host, colon, path = remote.partition(":")
        if not colon or "/" in host:  # a folder
            return ""
        remote = f"ssh://{host}/{path}"
    parts = urlsplit(remote)
    if parts.scheme not in ("http", "https", "ssh", "git") or not parts.hostname:
        return ""
    port = f":{parts.port}" if parts.port and parts.scheme.startswith("http") else ""
    scheme = parts.scheme if parts.scheme.startswith("http") else "https"
    return f"{scheme}://{parts.hostname}{port}{parts.path.rstrip('/').removesuffix('.git')}"
