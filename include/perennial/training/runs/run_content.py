"""Datasets, parameters and links of a run in MLflow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perennial.spec.model_spec import ModelSpec

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

#: Characters of a dataset's digest that MLflow keeps.
MAX_DIGEST_LENGTH = 36


@dataclass(frozen=True)
class DatasetVersion:
    """A version of a table that a training reads, as MLflow lists it.

    Attributes:
        name: name of the dataset.
        uri: the Delta table.
        version: its version.
        digest: digest of the partitions that are read.
        partitions: first and last of them, as ``start..end``; empty for a table without partitions.
    """

    name: str
    uri: str
    version: int
    digest: str
    partitions: str = ""


@dataclass(frozen=True)
class AirflowRun:
    """The run of Airflow that a training belongs to; empty outside Airflow.

    Attributes:
        run_id: its id.
        url: address of its page.
    """

    run_id: str = ""
    url: str = ""


def dataset_inputs(datasets: Sequence[DatasetVersion]) -> list[DatasetInput]:
    """What a training reads, as MLflow's datasets.

    Args:
        datasets: the table versions.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    inputs = []
    for dataset in datasets:
        source = {"path": dataset.uri, "delta_table_version": dataset.version}
        facts = {"partitions": dataset.partitions, "delta_table_version": str(dataset.version)}
        facts = {name: value for name, value in facts.items() if value}
        inputs.append(
            DatasetInput(
                Dataset(
                    dataset.name,
                    dataset.digest[:MAX_DIGEST_LENGTH],
                    "delta_table",
                    json.dumps(source, sort_keys=True),
                    profile=json.dumps(facts, sort_keys=True),
                ),
                [InputTag(MLFLOW_DATASET_CONTEXT, "training")],
            )
        )
    return inputs


def search_params(spec: ModelSpec) -> dict[str, Any]:
    """What the search was allowed to do, as parameters of the run.

    Args:
        spec: the model.
    """
    search = spec.training.search
    params: dict[str, Any] = {
        "search.trials": search.trials,
        "search.budget": search.budget,
        "search.minutes": search.minutes,
        "early_stopping_rounds": spec.training.early_stopping_rounds,
    }
    for name, values in search.space.items():
        span = (
            f"{values.low:g} to {values.high:g}" if values.low is not None and values.high is not None else ""
        )
        params[f"search.{name}"] = (
            ", ".join(f"{choice:g}" for choice in values.choices)
            if values.choices
            else f"{span}{', logarithmic' * values.log}"
        )
    return params


def airflow_tags(spec: ModelSpec, as_of: str, reason: str, airflow: AirflowRun) -> dict[str, str]:
    """The run of Airflow as tags, and as a link in the run's description."""
    if not airflow.run_id:
        return {}
    tags = {"perennial.airflow_run_id": airflow.run_id}
    if airflow.url:
        tags["perennial.airflow_run_url"] = airflow.url
        because = f" because: {reason}" if reason else ""
        tags["mlflow.note.content"] = (
            f"Trained as of {as_of}{because}.\n\n[Run {airflow.run_id} of {spec.name}.train in Airflow]({airflow.url})"
        )
    return tags
