"""Patches of third-party libraries, each with library, version, upstream issue, and when to delete it.

All are context managers: outside of them the libraries are unchanged. tests/unit/core/test_patches.py has a test for
each that fails once the library no longer needs the patch. The libraries are imported inside the functions,
because everything imports ``core``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: Statistics of a column whose plots Evidently's data summary never shows.
_HIDDEN_PLOTS = (
    "Maximum value of ",
    "Mean value of ",
    "Std value of ",
    "Median value of ",
    "Quantile ",
    "Sum of ",
)


@contextmanager
def great_expectations_cache(kind: type, cache: dict[tuple[str, int], Any]) -> Iterator[None]:
    """Compute the configuration and the metric dependencies of an expectation once.

    Library: Great Expectations 1.24.1, ``expectations/expectation.py``. Upstream issue: none is known.
    ``Expectation.configuration`` is rebuilt on each of about eighty reads during one evaluation, and
    ``get_validation_dependencies`` is called twice. Together that is nine tenths of the evaluation's time, although
    neither result changes. Delete this when ``configuration`` is cached upstream.

    Args:
        kind: class of the expectation that is evaluated in the ``with`` block.
        cache: filled here; reuse it for later evaluations of the same expectation.
    """
    from great_expectations.expectations.expectation import Expectation

    original, dependencies = Expectation.configuration, kind.get_validation_dependencies  # type: ignore[attr-defined]
    overridden = "get_validation_dependencies" in vars(kind)

    def cached(name: str, expectation: Any, compute: Callable[[], Any]) -> Any:
        if (name, id(expectation)) not in cache:
            # The reference keeps the expectation alive, so that its id is not reused.
            cache[name, id(expectation)] = (expectation, compute())
        return cache[name, id(expectation)][1]

    def cached_configuration(self: Any) -> Any:
        return cached("configuration", self, lambda: original.fget(self))

    def cached_dependencies(self: Any, *_: Any, **options: Any) -> Any:
        return cached("dependencies", self, lambda: dependencies(self, **options))

    Expectation.configuration = property(cached_configuration)
    kind.get_validation_dependencies = cached_dependencies  # type: ignore[attr-defined]
    try:
        yield
    finally:
        Expectation.configuration = original
        if overridden:
            kind.get_validation_dependencies = dependencies  # type: ignore[attr-defined]
        else:
            del kind.get_validation_dependencies  # type: ignore[attr-defined]


@contextmanager
def great_expectations_quiet() -> Iterator[None]:
    """Compute metrics in the ``with`` block without progress bars and without logging errors.

    Library: Great Expectations 1.24.1. Upstream issue: none is known. The KL divergence computes its intervals with
    ``show_progress_bars=True``, whatever the settings say. ``MetricsCalculator`` logs the traceback of an error that it
    also returns, and the error may quote values. Delete this when both follow the caller.
    """
    from great_expectations.validator import metrics_calculator, validation_graph

    bars, log = validation_graph.tqdm, metrics_calculator.logger
    validation_graph.tqdm = lambda *args, **options: bars(*args, **{**options, "disable": True})
    metrics_calculator.logger = logging.Logger("silent", logging.CRITICAL + 1)
    try:
        yield
    finally:
        validation_graph.tqdm, metrics_calculator.logger = bars, log


@contextmanager
def great_expectations_schema_checked_once() -> Iterator[None]:
    """Compare texts with a JSON schema in the ``with`` block without checking the schema for each text.

    Library: Great Expectations 1.24.1, ``column_values_match_json_schema.py``. Upstream issue: none is known. It calls
    ``jsonschema.validate`` for each value, which first checks the schema itself: nine tenths of the time. Delete this
    when it makes one validator for all values.
    """
    from great_expectations.expectations.metrics.column_map_metrics import column_values_match_json_schema

    jsonschema = column_values_match_json_schema.jsonschema
    checked: dict[int, Any] = {}

    class Once:
        """Stands for the module ``jsonschema``, of which that metric uses these three names."""

        ValidationError, SchemaError = jsonschema.ValidationError, jsonschema.SchemaError

        @staticmethod
        def validate(instance: Any, schema: Any) -> None:
            if id(schema) not in checked:
                kind = jsonschema.validators.validator_for(schema)
                kind.check_schema(schema)
                checked[id(schema)] = kind(schema)
            if not checked[id(schema)].is_valid(instance):
                raise jsonschema.ValidationError("the value does not match the schema")

    column_values_match_json_schema.jsonschema = Once
    try:
        yield
    finally:
        column_values_match_json_schema.jsonschema = jsonschema


@contextmanager
def evidently_single_summary_plot() -> Iterator[None]:
    """Plot each column of Evidently's data summary once.

    Library: Evidently 0.7.23, ``metrics/column_statistics.py``: ``StatisticsCalculation.calculate``. Upstream issue:
    none is known. The same distribution is plotted for each statistic of a column, and only the minimum's plot is
    shown; the others are two thirds of the preset's time. Delete this when the preset no longer plots them.
    """
    from evidently.metrics import column_statistics

    original = column_statistics.distribution

    def distribution(title: str, current: Any, reference: Any) -> Any:
        return [] if title.startswith(_HIDDEN_PLOTS) else original(title, current, reference)

    column_statistics.distribution = distribution
    try:
        yield
    finally:
        column_statistics.distribution = original


@contextmanager
def evidently_drift_table_only() -> Iterator[None]:
    """Plot each column of Evidently's drift report in the preset's table only.

    Library: Evidently 0.7.23, ``metrics/column_statistics.py``: ``ValueDriftCalculation._render``; since
    https://github.com/evidentlyai/evidently/pull/1421. Each column is also plotted as a separate metric, which the
    preset does not show on the page: a quarter of the time. Delete this when the preset no longer plots them.
    """
    from evidently.metrics.column_statistics import ValueDriftCalculation

    original = ValueDriftCalculation._render
    ValueDriftCalculation._render = lambda *_: []
    try:
        yield
    finally:
        ValueDriftCalculation._render = original


@contextmanager
def mlflow_outside_databricks() -> Iterator[None]:
    """Send MLflow's requests in the ``with`` block without first looking for Databricks.

    Library: MLflow 3.17.2, ``tracking/request_header/registry.py``. Upstream issue: none is known. Before each request,
    MLflow tries seven times to import ``dbruntime`` and ``pyspark``. Python searches its whole path for a package that
    is not installed each time: half of the request's time. In Databricks' runtime, which sets
    ``DATABRICKS_RUNTIME_VERSION``, this does nothing. Delete this when MLflow looks for it once.
    """
    from mlflow.tracking.request_header import registry
    from mlflow.tracking.request_header.databricks_request_header_provider import (
        DatabricksRequestHeaderProvider,
    )

    providers = registry._request_header_provider_registry
    original = providers._registry
    if "DATABRICKS_RUNTIME_VERSION" not in os.environ:
        providers._registry = [p for p in original if not isinstance(p, DatabricksRequestHeaderProvider)]
    try:
        yield
    finally:
        providers._registry = original


@contextmanager
def xgboost_without_sklearn() -> Iterator[None]:
    """Import XGBoost in the ``with`` block without scikit-learn, which prediction does not need.

    Library: XGBoost 3.2.0, ``compat.py``. Upstream issue: none is known. ``import xgboost`` imports scikit-learn
    wherever it is installed, which uses 100 MiB. This does nothing if either was imported before. Delete
    this when XGBoost imports scikit-learn only where its estimators are used.
    """
    hidden = not {"xgboost", "sklearn"} & set(sys.modules)
    if hidden:
        sys.modules["sklearn"] = None  # type: ignore[assignment]  # importing it fails, as if it were not installed
    try:
        yield
    finally:
        if hidden:
            del sys.modules["sklearn"]
