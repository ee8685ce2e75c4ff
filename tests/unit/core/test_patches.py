"""Each patch of a library is still needed: these tests show the fault in the library as it is.

When one fails, the library has changed: delete the patch, or adapt it.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import Any

import pytest

from perennial.core import patches


@pytest.fixture
def configurations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every expectation whose configuration is built, once for each time."""
    from great_expectations.expectations.expectation import Expectation

    built: list[Any] = []
    original = Expectation.configuration.fget

    def build(self: Any) -> Any:
        built.append(self)
        return original(self)

    monkeypatch.setattr(Expectation, "configuration", property(build))
    return built


def evaluate(expectation: Any) -> Any:
    metrics = expectation.get_validation_dependencies().metric_configurations
    values = {"table.row_count": 10, "column_values.nonnull.unexpected_count": 0}
    return expectation.metrics_validate(
        {metric.id: values.get(name, 0) for name, metric in metrics.items()},
        runtime_configuration={"result_format": {"result_format": "BASIC", "partial_unexpected_count": 20}},
    )


def test_great_expectations_builds_a_configuration_many_times(configurations: list[Any]) -> None:
    from great_expectations.expectations.core import ExpectColumnMaxToBeBetween

    expectation = ExpectColumnMaxToBeBetween(column="x", max_value=1)
    plain = evaluate(expectation)
    assert len(configurations) > 10, "it is cached upstream: delete great_expectations_cache"
    configurations.clear()
    cache: dict[tuple[str, int], Any] = {}
    for _ in range(2):
        with patches.great_expectations_cache(type(expectation), cache):
            cached = evaluate(expectation)
    assert len(configurations) == len({id(c) for c in configurations}), "once for each object"
    assert cached.to_json_dict() == plain.to_json_dict()
    configurations.clear()
    evaluate(expectation)
    assert len(configurations) > 10, "outside of the patch, the library is as it was"


@pytest.mark.parametrize("quiet", [False, True])
def test_great_expectations_prints_progress_and_errors(
    quiet: bool, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    import pandas as pd
    from great_expectations.execution_engine import PandasExecutionEngine
    from great_expectations.expectations.core import ExpectColumnKLDivergenceToBeLessThan
    from great_expectations.validator.metric_configuration import MetricConfiguration
    from great_expectations.validator.metrics_calculator import MetricsCalculator

    engine = PandasExecutionEngine(batch_data_dict={"b": pd.DataFrame({"x": [1.0, 2.0, 3.0]})})
    expectation = ExpectColumnKLDivergenceToBeLessThan(column="x", partition_object=None, threshold=1)
    with patches.great_expectations_quiet() if quiet else contextlib.nullcontext():
        expectation.get_validation_dependencies(engine)
        MetricsCalculator(engine).compute_metrics([MetricConfiguration("column.max", {"column": "y"})])
    printed, logged = capfd.readouterr().err, caplog.text
    assert ("Calculating Metrics" in printed) is not quiet, (
        "delete great_expectations_quiet if nothing is printed"
    )
    assert ("occurred while resolving metrics" in logged) is not quiet


@pytest.mark.parametrize("patched", [False, True])
def test_great_expectations_checks_a_schema_for_each_value(
    patched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jsonschema
    import pandas as pd
    from great_expectations.execution_engine import PandasExecutionEngine
    from great_expectations.validator.metric_configuration import MetricConfiguration
    from great_expectations.validator.metrics_calculator import MetricsCalculator

    checks: list[Any] = []
    kind = jsonschema.validators.validator_for({})
    original = kind.check_schema
    monkeypatch.setattr(kind, "check_schema", lambda schema: (checks.append(schema), original(schema)))
    engine = PandasExecutionEngine(
        batch_data_dict={"b": pd.DataFrame({"x": ['{"a": 1}', "[]", '{"a": "b"}']})}
    )
    metric = MetricConfiguration(
        "column_values.match_json_schema.condition",
        {"column": "x"},
        {"json_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    )
    with patches.great_expectations_schema_checked_once() if patched else contextlib.nullcontext():
        resolved, _ = MetricsCalculator(engine).compute_metrics([metric])
    assert list(resolved[metric.id][0]) == [False, True, True], "whether each value is unexpected"
    assert len(checks) == (1 if patched else 3), "delete great_expectations_schema_checked_once if it is 1"


@pytest.fixture
def frame() -> Any:
    import pandas as pd

    return pd.DataFrame({"x": [float(i % 10) for i in range(100)]})


@pytest.fixture
def plots(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every distribution of one column that Evidently plots."""
    from evidently.metrics import column_statistics

    drawn: list[Any] = []
    original = column_statistics.plot_distr_with_perc_button

    def plot(**options: Any) -> Any:
        drawn.append(options)
        return original(**options)

    monkeypatch.setattr(column_statistics, "plot_distr_with_perc_button", plot)
    return drawn


def test_evidently_plots_a_column_once_for_each_statistic(frame: Any, plots: list[Any]) -> None:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataSummaryPreset

    data = Dataset.from_pandas(frame, DataDefinition(numerical_columns=["x"]))
    plain = Report([DataSummaryPreset()]).run(data, None)
    assert len(plots) > 1, "it is plotted once upstream: delete evidently_single_summary_plot"
    plots.clear()
    with patches.evidently_single_summary_plot():
        patched = Report([DataSummaryPreset()]).run(data, None)
    assert len(plots) == 1
    assert patched.dict()["metrics"] == plain.dict()["metrics"]
    assert len(patched.get_html_str(as_iframe=False)) == len(plain.get_html_str(as_iframe=False))


def test_evidently_plots_drift_that_it_does_not_show(frame: Any, plots: list[Any]) -> None:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    data = Dataset.from_pandas(frame, DataDefinition(numerical_columns=["x"]))
    plain = Report([DataDriftPreset()]).run(data, data)
    assert plots, "it is not plotted upstream: delete evidently_drift_table_only"
    plots.clear()
    with patches.evidently_drift_table_only():
        patched = Report([DataDriftPreset()]).run(data, data)
    assert not plots
    assert patched.dict()["metrics"] == plain.dict()["metrics"]
    assert len(patched.get_html_str(as_iframe=False)) == len(plain.get_html_str(as_iframe=False))


def imports_sklearn(code: str) -> bool:
    """Whether scikit-learn is loaded once a fresh process has run some code."""
    code += "\nimport sys\nprint(sys.modules.get('sklearn') is not None)"
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "True"


def test_mlflow_looks_for_databricks_before_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking.request_header import databricks_request_header_provider, registry

    looked: list[str] = []
    monkeypatch.setattr(databricks_request_header_provider.databricks_utils, "is_in_cluster",
                        lambda: bool(looked.append("cluster")))  # fmt: skip
    plain = [registry.resolve_request_headers({"x": "1"}) for _ in range(2)]
    assert len(looked) == 2, "it looks once: delete mlflow_outside_databricks"
    with patches.mlflow_outside_databricks():
        assert registry.resolve_request_headers({"x": "1"}) == plain[0]
    assert len(looked) == 2
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "17.0")
    with patches.mlflow_outside_databricks():
        registry.resolve_request_headers()
    registry.resolve_request_headers()
    assert len(looked) == 4


def test_xgboost_imports_sklearn() -> None:
    assert imports_sklearn("import xgboost"), "it is imported lazily upstream: delete xgboost_without_sklearn"
    patched = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from perennial.core import patches\n"
        "with patches.xgboost_without_sklearn():\n    import xgboost\n"
    )
    assert not imports_sklearn(patched)
    assert imports_sklearn(f"{patched}import sklearn"), "it can be imported afterwards"
