"""Files made from the definitions of specs and compute profiles: JSON Schemas for editors, and pages on every key."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from perennial.core.settings import ROOT
from perennial.spec.compute_profile import ComputeProfile
from perennial.spec.constraints import GATE_METRICS, HOLDOUT_METRICS, OBJECTIVES, PARAMETER_BOUNDS
from perennial.spec.model_spec import ModelSpec, json_schema
from perennial.spec.sections import FeatureSet
from perennial.storage import object_store

MODELS = ROOT / "include" / "models"
_INTRO = """# Models

<!-- Made by `make docs` from the descriptions in include/perennial/spec: change them there. -->

A folder is a model:

| file | what it is |
| --- | --- |
| `model.yaml` | everything that is said about the model; the keys are below |
| `features.sql` | one SELECT over `rows` and the reference tables: the key, and one column a feature |
| `expectations.json` | a [Great Expectations](https://docs.greatexpectations.io) suite that judges each partition |
| `README.md` | for people: what it predicts, from what, for whom |

A folder with `feature_set.yaml` instead is a feature set: its `features.sql` adds columns to the rows of every model
that names it in `features.sets`.

`perennial new NAME` makes a folder from a sample file; `perennial check` says what is wrong with one, with file and
line. Folders elsewhere are found through `PERENNIAL_MODELS`. Editors complete and check `model.yaml` by
`model.schema.json`, if its first line is `# yaml-language-server: $schema=../model.schema.json`.

## The SQL of features

- Each row comes out once, whatever it holds: no WHERE, LEFT JOIN instead of JOIN, reference tables joined by a unique
  key (or `ASOF LEFT JOIN` by time: the latest known by then).
- A row's features depend on that row and the reference tables alone: no window or aggregate over `rows`, no time of
  day, nothing random.
- The label is not among the rows when it is one of their columns. A feature is a number or a yes or no, or is named in
  `features.categorical`.
"""


COMPUTE = ROOT / "include" / "compute"
_COMPUTE_INTRO = """# Compute profiles

<!-- Made by `make docs` from the descriptions in include/perennial/spec/compute_profile.py: change them there. -->

A file `<name>.yaml` says where a step runs and with what. A model names one for a step, and nothing else changes:

```yaml
compute: {train: gpu, score: kubernetes}   # in model.yaml; data and monitor stay where PERENNIAL_PROFILE says
```

`PERENNIAL_PROFILE` is the profile of every heavy step that its spec leaves open (`local` when it is not set), so that
one setting moves all models from a laptop to a cluster. Your own profiles lie in folders that `PERENNIAL_COMPUTE`
names, and come before these. Light tasks (promote, decide, ask) always run in the Airflow worker.

- **The pod** is the profile's `template`, then the profile, then the step; lists merge by name. It meets the Pod
  Security Standard *restricted*: no root, no privileges, no service account token, its disk read-only but for a scratch
  volume.
- **What it sees**: the lake, the landing area, MLflow and AWS's region and endpoint, as the Airflow worker has them;
  secrets by reference (`secrets`, `secret_env`), and nothing else. `PERENNIAL_MEMORY_MB` is three quarters of `memory`.
- **Waiting**: a pod that finds no node, or no quota, waits up to `wait_minutes`; the task's log shows the scheduler's
  reason, and so does the failure.
- **Killed for memory**: the task's log names the limit, and the step is tried again with the next of `more_memory`.
- **Evicted, preempted, deleted, node lost**: tried again up to `interruptions` times, which costs none of the task's
  retries. A training goes on from its checkpoint on the lake, written once a minute (`PERENNIAL_CHECKPOINT_SECONDS`).
- **A killed Airflow task** finds its pod again. A pod whose task is gone is deleted by the DAG `perennial.maintenance`.
- **The result** comes through the lake. A pod that is green but left no result, or no manifest, is a failure.
- **The image** must hold the library that the DAGs have: another digest is refused before any work.

## Training on more than one machine

`workers: 4` has four workers fit a model together by XGBoost's Dask interface, for rows that one machine cannot hold or
that take it too long. It changes where a model is fitted, and nothing that a model says:

```yaml
name: gpus
kind: kubernetes
workers: 4
gpu: {count: 1}   # one each
memory: 64Gi      # each: a share of the rows lies in memory, at 10 bytes a cell
```

- **Pods**: a trainer, which leads (scheduler, search, judging; no GPU), and its workers, named after it (labels
  `perennial/role` and `perennial/trainer`). Kubernetes deletes workers with their trainer; they end when the model is
  fitted, so that no GPU waits for the judging. With `kind: local`, or `perennial run train --workers 2`, they are
  processes of this machine (which cannot share its GPU: training on cuda is refused).
- **Rendezvous**: the trainer writes its address to the lake and workers look for it there; both wait as long as
  `wait_minutes` and `start_minutes` together. Who did not come, and why, is in the failure.
- **Rows**: each worker reads its dates of the pinned version from the lake itself. Categories and classes are gathered
  once and handed to all. Early stopping, the search and checkpoints work as in one process.
- **Equal, but not byte for byte**: the bins of several shares differ in the last digits from those of one. The same
  number of workers on the same rows gives the same model again; another number begins without the checkpoint.
- **A lost worker** ends the attempt: XGBoost cannot go on without it. That is an interruption like any other; the next
  attempt has new pods and goes on from the checkpoint. Where a worker was killed for memory, it has the next of
  `more_memory`.
- **Not encrypted**: trainer and workers talk to each other in the clear and trust whoever reaches them (Dask's TLS is
  not set up). The network policy `workers` lets only pods of those roles reach them; do not run without one.
"""


def schema() -> str:
    """The JSON Schema of ``model.yaml``, as text."""
    return _text(json_schema())


def profile_schema() -> str:
    """The JSON Schema of a compute profile, as text."""
    return _text(
        ComputeProfile.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    )


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def compute_page() -> str:
    """``include/compute/README.md``."""
    return "\n".join([_COMPUTE_INTRO, "## Keys\n", *_table(ComputeProfile, "")]).rstrip() + "\n"


def page() -> str:
    """``include/models/README.md``."""
    parts = [_INTRO, "## Keys of `model.yaml`\n", *_table(ModelSpec, "")]
    parts += ["## Keys of `feature_set.yaml`\n", *_table(FeatureSet, "")]
    parts.append("## What depends on the task\n")
    parts.append("| task | `gate.metric` | `gate.bounds` | `training.objective` |\n| --- | --- | --- | --- |")
    for task in GATE_METRICS:
        cells = (
            ", ".join(f"`{v}`" for v in table[task]) for table in (GATE_METRICS, HOLDOUT_METRICS, OBJECTIVES)
        )
        parts.append(f"| {task} | {' | '.join(cells)} |")
    parts.append(
        "\nThe first of each is taken where none is given.\n\n## Parameters of `training.params` and "
        "`training.search.space`\n"
    )
    parts.append("| parameter | from | to |\n| --- | --- | --- |")
    parts += [f"| `{name}` | {low:g} | {high:g} |" for name, (low, high) in PARAMETER_BOUNDS.items()]
    return "\n".join(parts) + "\n"


def _table(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    """Markdown of a section's keys, then of the sections within it."""
    yield "| key | what it may be | when not given | what it says |\n| --- | --- | --- | --- |"
    inner: list[tuple[str, type[BaseModel]]] = []
    for name, field in kind.model_fields.items():
        section = _section(field.annotation)
        if section:
            suffix = (
                ""
                if isinstance(field.annotation, type)
                or get_origin(field.annotation) in (Union, types.UnionType)
                else "[]"
                if get_origin(field.annotation) is list
                else ".*"
            )
            inner.append((f"{prefix}{name}{suffix}", section))
        default = field.get_default(call_default_factory=True)
        if field.is_required():
            shown = "**must be given**"
        elif isinstance(default, BaseModel) or default in ([], {}) or default is PydanticUndefined:
            shown = ""
        else:
            shown = "" if default is None else f"`{json.dumps(default, default=str)}`"
        limits = "".join(f", {word} {value}" for word, value in _limits(field.metadata))
        yield f"| `{prefix}{name}` | {_type(field.annotation)}{limits} | {shown} | {field.description or ''} |"
    yield ""
    for name, section in inner:
        yield f"### `{name}`\n"
        yield from _table(section, f"{name}.")


def _limits(metadata: list[Any]) -> Iterator[tuple[str, Any]]:
    for item in metadata:
        for attribute, word in (
            ("ge", "at least"),
            ("gt", "above"),
            ("le", "at most"),
            ("lt", "below"),
            ("min_length", "length at least"),
            ("max_length", "length at most"),
        ):
            if getattr(item, attribute, None) is not None:
                yield word, f"{getattr(item, attribute)}"


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, or that each of its items is."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section(part))), None)


def _type(annotation: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _type(annotation.__origin__)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a section"
    if origin is Literal:
        return ", ".join(f"`{p}`" for p in parts)
    if origin in (Union, types.UnionType):
        return _type(next(p for p in parts if p is not type(None)))
    if origin is list:
        return f"list of {_type(parts[0])}"
    if origin is tuple:
        return f"list of {len(parts)}: {', '.join(_type(p) for p in parts)}"
    if origin is dict:
        return f"name: {_type(parts[1])}"
    name = str(annotation.__name__)
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(name, name)


def write(*, dry_run: bool = False) -> list[Path]:
    """Write the generated files; returns those that were stale."""
    stale = []
    for path, text in (
        (MODELS / "model.schema.json", schema()),
        (MODELS / "README.md", page()),
        (COMPUTE / "profile.schema.json", profile_schema()),
        (COMPUTE / "README.md", compute_page()),
    ):
        if not path.is_file() or path.read_text("utf-8") != text:
            stale.append(path.relative_to(ROOT))
            if not dry_run:
                object_store.write_text(str(path), text)
    return stale
