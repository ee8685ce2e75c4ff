"""What a change of a spec means for what exists: tables, manifests, the champion, open requests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from perennial.core.sql import fold_identifier
from perennial.spec.model_spec import ModelSpec
from perennial.spec.policies import CardSpec, RetentionSpec
from perennial.spec.text_format import TextFormatSpec


class Effect(StrEnum):
    """What a change of a key needs."""

    NONE = "nothing"
    NEXT_RUN = "applies to the next run"
    BACKFILL = "applies to new partitions; publish earlier ones again"
    NEXT_VERSION = "applies to the next version"
    GENERATION = "refused until a new generation begins"
    NEW_MODEL = "refused"


class SpecChange(NamedTuple):
    """What a change of a key means.

    Attributes:
        effect: what it needs.
        lake: what it means for tables and manifests.
        champion: what it means for the champion, and for a training that was requested or has ended.
    """

    effect: Effect
    lake: str
    champion: str


#: Types whose values are the same after a column is converted; `features.engine` reads them as the earlier ones.
_WIDER = {("integer", "number"), ("date", "timestamp")}
_NO_ROWS = "Nothing: what was published, scored or trained counts as before."
_NO_CHAMPION = "Nothing."
_TRAINED = "Tables stay. A training of the same date runs again."
_KEEPS = "The champion keeps what it was trained with. A requested training uses the new value."
_MONITORED = "Partitions are monitored again when asked for; earlier verdicts stay."
_RETRAINING = (
    "Tables stay. Requests and answers stay; a date that was declined is decided again when asked for."
)
_COMPARED = (
    "It is not compared: the gate uses the baselines, monitoring is undetermined, a challenger that waits for its "
    "promotion is refused."
)


def _format_keys(section: str) -> list[str]:
    return [f"{section}.{key}" for key in TextFormatSpec.model_fields]


#: Each key of model.yaml, and each other file of the folder.
CHANGES: dict[str, SpecChange] = {
    "name": SpecChange(
        Effect.NEW_MODEL,
        "A renamed folder is a new model, without tables. Those of the old name stay.",
        "Versions stay under the old name. Tasks that wait fail and say that the folder is gone.",
    ),
    "task": SpecChange(
        Effect.GENERATION, "Labels, predictions and logged features begin a new generation.",
        f"{_COMPARED} It does not score.",
    ),
    **dict.fromkeys(("owner", "description", "tags", "risk.level", "risk.without", "compute", "limits",
                     "alerts.channels", "alerts.mute"),
                    SpecChange(Effect.NEXT_RUN, _NO_ROWS, _NO_CHAMPION)),
    "group": SpecChange(
        Effect.NEXT_VERSION, _TRAINED,
        "It is monitored on the lists that it was trained with, and compared on the new ones.",
    ),
    "data.source": SpecChange(
        Effect.BACKFILL,
        "Manifests of earlier partitions do not count: a backfill publishes them from the new source, whether files or "
        "a query.",
        "It scores the rows of the new source.",
    ),
    **dict.fromkeys(
        ("data.every", "data.week_starts"),
        SpecChange(
            Effect.NEW_MODEL,
            "Refused as long as tables have partitions of another length: give the folder another name, and backfill.",
            "It stays under the old name.",
        ),
    ),
    "data.timezone": SpecChange(
        Effect.BACKFILL,
        "New partitions, and the runs of the schedule, are those of the new zone. A backfill checks earlier partitions "
        "again, and asks a query again for their rows.",
        _NO_CHAMPION,
    ),
    "data.key": SpecChange(
        Effect.GENERATION,
        "All tables but the published rows begin a new generation, and those too if a type of the key changed.",
        f"{_COMPARED} It does not score.",
    ),
    "data.event_time": SpecChange(
        Effect.BACKFILL,
        "Rows are checked by the new column, or not if there is none. A backfill checks earlier partitions again.",
        _KEEPS,
    ),
    "data.row_number": SpecChange(
        Effect.BACKFILL,
        "Rows of new partitions are numbered; a backfill numbers those of earlier ones. Without it, the files need "
        "the column.",
        _KEEPS,
    ),
    "data.columns": SpecChange(
        Effect.GENERATION,
        "A new column is null in earlier partitions until they are published again. A removed one is kept there, and "
        "null in new ones. `integer` to `number` and `date` to `timestamp` are converted. Any other type needs a new "
        "generation.",
        "A column that its features do not name does not matter. If the type of one changed, it is treated as one of "
        "another task; after a conversion it continues, and fails on a value that its type does not have.",
    ),
    "data.personal": SpecChange(
        Effect.BACKFILL,
        "New reports, messages and quarantine hide the values. Those that exist show them until the partitions are "
        "published and monitored again; earlier versions of the tables keep them.",
        "Its reference rows, kept with the version, may hold values: train again.",
    ),
    **dict.fromkeys(
        ("data.extra_columns", "data.quarantine_limit"),
        SpecChange(Effect.BACKFILL, "A backfill evaluates earlier partitions again.", _NO_CHAMPION),
    ),
    **dict.fromkeys(
        _format_keys("data.format"),
        SpecChange(
            Effect.BACKFILL,
            "A backfill reads earlier partitions again, and their labels if `label.format` is not given.",
            "It scores what is read by the new format.",
        ),
    ),
    **dict.fromkeys(
        _format_keys("label.format"),
        SpecChange(Effect.BACKFILL, "A backfill reads earlier labels again.", _NO_CHAMPION),
    ),
    **dict.fromkeys(
        ("data.arrival", "data.arrival_hours"), SpecChange(Effect.NEXT_RUN, _NO_ROWS, _NO_CHAMPION)
    ),
    "label.expression": SpecChange(
        Effect.GENERATION, "Labels begin a new generation.",
        f"{_COMPARED} It continues to score.",
    ),
    "label.source": SpecChange(
        Effect.BACKFILL,
        "Labels of earlier partitions stay until a backfill reads them from the new source.",
        _NO_CHAMPION,
    ),
    "label.columns": SpecChange(
        Effect.GENERATION,
        "If the type of the label became wider, labels are converted; for any other change of it they begin a new "
        "generation. Otherwise a backfill reads earlier labels again.",
        "A multiclass champion whose label had another type is not compared, as one of another task.",
    ),
    "label.personal": SpecChange(
        Effect.BACKFILL, "New quarantine and messages hide the values; a backfill hides those that exist.", _NO_CHAMPION
    ),
    "label.arrives_after": SpecChange(
        Effect.NEXT_RUN,
        "Labels that became due at once are fetched by a data run of the dates in between.",
        "It counts labels that are due by the new value.",
    ),
    **dict.fromkeys(
        ("features.sets", "features.categorical", "features.personal", "features.sql", "feature_set.yaml"),
        SpecChange(Effect.NEXT_VERSION, _TRAINED, _KEEPS),
    ),
    **dict.fromkeys(
        ("features.tables", "feature_table.yaml"),
        SpecChange(
            Effect.NEXT_VERSION,
            "Another definition is another table in the lake, filled when needed. The same date is trained again.",
            f"{_KEEPS} It reads the table of its own definition, which is kept up to date for it.",
        ),
    ),
    "features.references": SpecChange(
        Effect.NEXT_VERSION,
        "Another name or source begins another table. A file whose columns changed their type is refused.",
        f"{_KEEPS} It reads the tables of its own spec.",
    ),
    **dict.fromkeys(
        ("features.category_order", "features.unseen", "training.engine", "training.candidates",
         "training.objective", "training.device",
         "training.window", "training.holdout", "training.rounds", "training.early_stopping_rounds",
         "training.early_stopping_cuts", "training.max_rows",
         "training.params", "training.search.trials", "training.search.budget", "training.search.minutes",
         "training.search.space",
         "training.refit", "training.seed"),
        SpecChange(Effect.NEXT_VERSION, _TRAINED, _KEEPS),
    ),
    "gate.metric": SpecChange(
        Effect.NEXT_VERSION, _TRAINED,
        "It is monitored by the metric of its training, and compared by the new one.",
    ),
    **dict.fromkeys(
        ("gate.margin", "gate.confidence", "gate.bootstrap_samples", "gate.bootstrap_unit", "gate.beat_baseline",
         "gate.bounds", "gate.slices.max_worsening", "gate.slices.min_rows", "gate.fairness.groups",
         "gate.fairness.values", "gate.fairness.edges", "gate.fairness.bounds", "gate.fairness.threshold",
         "gate.fairness.min_rows"),
        SpecChange(Effect.NEXT_VERSION, _TRAINED, "A challenger that has passed is promoted all the same."),
    ),
    **dict.fromkeys(
        ("gate.approval.who", "gate.approval.hours", "gate.approval.reasons"),
        SpecChange(Effect.NEXT_RUN, _NO_ROWS, "It stays champion; the next version needs the approval."),
    ),
    "training.study_minutes": SpecChange(
        Effect.NEXT_RUN, _NO_ROWS, "The next training studies features and ages of models within the new time."
    ),
    "gate.external_change": SpecChange(
        Effect.NEXT_RUN, _NO_ROWS, "A champion that was moved or removed in MLflow is treated by the new policy."
    ),
    **dict.fromkeys(
        ("monitoring.performance_drop", "monitoring.false_alarms_per_year", "monitoring.fairness_gap"),
        SpecChange(Effect.NEXT_VERSION, _MONITORED, "The limits of its signals were computed when it was trained."),
    ),
    **dict.fromkeys(
        ("monitoring.slices", "monitoring.fairness"),
        SpecChange(Effect.NEXT_VERSION, _MONITORED, "Undetermined for a column that its training did not have."),
    ),
    **dict.fromkeys(
        ("monitoring.window", "monitoring.reference", "monitoring.min_rows", "monitoring.psi_threshold",
         "monitoring.noise_floor", "monitoring.null_jump", "monitoring.drift_share", "monitoring.min_evaluated_share",
         "monitoring.persistence", "monitoring.new_categories", "monitoring.volume_factor", "monitoring.report_rows"),
        SpecChange(
            Effect.NEXT_RUN,
            _MONITORED,
            "Evaluated by the new policy, with the verdicts that exist: `persistence` counts them as they are.",
        ),
    ),
    **dict.fromkeys(
        ("retraining.triggers", "retraining.mode", "retraining.approval_hours", "retraining.min_gain",
         "retraining.windows", "retraining.trial", "retraining.ab_share", "retraining.cooldown", "retraining.regular",
         "retraining.budget", "retraining.budget_period", "retraining.max_age", "retraining.abandoned_after",
         "retraining.new_rows", "retraining.gpu_hours", "retraining.freeze", "retraining.quiet_hours.from_hour",
         "retraining.quiet_hours.to_hour", "retraining.quiet_hours.timezone"),
        SpecChange(Effect.NEXT_RUN, _RETRAINING, "A trial that runs is evaluated by the new policy."),
    ),
    **dict.fromkeys(
        ("schedule.data", "schedule.monitor", "schedule.start", "schedule.end"),
        SpecChange(
            Effect.NEXT_RUN,
            "An earlier `start` creates no run by itself: backfill those partitions. A later one removes nothing.",
            _NO_CHAMPION,
        ),
    ),
    **dict.fromkeys(
        ("predictions.connection", "predictions.table"),
        SpecChange(
            Effect.NEXT_RUN,
            "Predictions of later runs are written to the new table. Score a range again to write earlier ones; the "
            "old table stays as it is.",
            _NO_CHAMPION,
        ),
    ),
    **dict.fromkeys(
        [f"card.{key}" for key in CardSpec.model_fields],
        SpecChange(Effect.NEXT_RUN, _NO_ROWS, "Its card stays as it is; the next version's card says it."),
    ),
    **dict.fromkeys(
        tuple(f"retention.{key}" for key in RetentionSpec.model_fields),
        SpecChange(
            Effect.NEXT_RUN,
            "The next run of `perennial.retention` deletes what is older. What is deleted does not come back with a "
            "longer time: publish or score it again.",
            "It is kept, with what it was trained on.",
        ),
    ),
    "expectations.json": SpecChange(
        Effect.BACKFILL, "Manifests of earlier partitions do not count: a backfill evaluates them again.", _NO_CHAMPION
    ),
}  # fmt: skip


def changed_keys(then: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The keys of two `ModelSpec.bundle` whose values differ, in order, with both values as text; without alerts.

    Args:
        then: the earlier bundle.
        after: the later one.
    """
    earlier, later = (dict(_flat("", _without_alerts(bundle))) for bundle in (then, after))
    return {
        key.removeprefix("model."): values
        for key in sorted({*earlier, *later})
        if (values := (earlier.get(key, ""), later.get(key, "")))[0] != values[1]
    }


def _without_alerts(bundle: Mapping[str, Any]) -> dict[str, Any]:
    return {**bundle, "model": {key: value for key, value in bundle["model"].items() if key != "alerts"}}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Keys with dots, and their values as text."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), item)
    elif isinstance(value, str):
        yield prefix, value
    elif value not in (None, [], {}):
        yield prefix, json.dumps(value)


def prediction_difference(trained: ModelSpec, spec: ModelSpec) -> str:
    """Why predictions of a version are not those that the spec describes; empty if they are.

    Args:
        trained: the spec that the version was trained with.
        spec: the present spec.
    """
    if trained.task != spec.task:
        return f"it was trained for task {trained.task}, the spec has task {spec.task}"
    if sorted(trained.data.key) != sorted(spec.data.key):
        return f"it was trained with the key {', '.join(trained.data.key)}, the spec has {', '.join(spec.data.key)}"
    for column, after in spec.data.columns.items():
        before = trained.data.columns.get(column, after)
        if before != after and (before, after) not in _WIDER and _reads(trained, column):
            return f"it was trained when column {column!r} was {before}, the spec has {after}"
    return ""


#: What in SQL is no code: comments and texts.
_NO_CODE = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)
#: A star that stands for all columns, and not for a product or for `count(*)`, by what precedes and follows it.
_STAR = re.compile(
    r"\*(?=\s*(?:$|[,);]|(?:from|exclude|replace|rename|like|ilike|similar|glob|order|limit)\b))"
)
_COUNT = re.compile(r"\bcount\s*\(\s*$")


def _reads(trained: ModelSpec, column: str) -> bool:
    """Whether the features of a version may depend on a column: its SQL names it, or reads all columns."""
    name = re.escape(fold_identifier(column).replace('"', '""'))
    named = re.compile(rf"(?<!\w){name}(?!\w)")
    for text in (trained.sql, *(s.sql for s in trained.feature_sets)):
        code = _NO_CODE.sub(" ", fold_identifier(text))
        if named.search(code) or _reads_all_columns(code):
            return True
    return False


def _reads_all_columns(code: str) -> bool:
    """Whether SQL may read columns that it does not name: by a star, or by a FROM without a SELECT."""
    if any(not _COUNT.search(code[: star.start()]) for star in _STAR.finditer(code)):
        return True
    words = re.findall(r"\w+", re.sub(r"\bdistinct\s+from\b|\bextract\s*\(\s*\w+\s+from\b", " ", code))
    return words.count("from") > words.count("select")


def target_difference(trained: ModelSpec, spec: ModelSpec) -> str:
    """Why a version cannot be compared with others on the spec's labels; empty if it can.

    Args:
        trained: the spec that the version was trained with.
        spec: the present spec.
    """
    if difference := prediction_difference(trained, spec):
        return difference
    if trained.label.expression != spec.label.expression:
        return "it was trained with another label.expression"
    # For any other task labels are numbers; classes are the text of the labels.
    if spec.task == "multiclass":
        before, after = _label_columns(trained), _label_columns(spec)
        for column in before.keys() & after.keys():
            if before[column] != after[column]:
                return f"it was trained when label column {column!r} had type {before[column]}, not {after[column]}"
    return ""


def as_trained(trained: ModelSpec, spec: ModelSpec) -> ModelSpec:
    """The present spec with the metric, objective and group that a version, and its baseline, were trained with.

    A loss by the present metric cannot be compared with a baseline of another one. The present metric applies to the
    next training.

    Args:
        trained: the spec that the version was trained with.
        spec: the present spec.
    """
    return spec.model_copy(
        update={
            "gate": spec.gate.model_copy(update={"metric": trained.metric}),
            "training": spec.training.model_copy(update={"objective": trained.objective}),
            "group": trained.group,
        }
    )


def _label_columns(spec: ModelSpec) -> dict[str, str]:
    """Declared types of the columns that the label is computed from, or may be."""
    if spec.label.source is None:
        return {spec.label.expression: spec.data.columns[spec.label.expression]}
    return {c: declared for c, declared in spec.label.columns.items() if c not in spec.data.key}
