"""Data docs: Great Expectations' page of a partition's validation, self-contained and safe to open.

Its templates put column names and values into the page without escaping, and load scripts and styles from six hosts.
So every text is protected before it is rendered (see `perennial.core.html`), and a small style sheet replaces what the
page would load.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any

from perennial.core import html
from perennial.core.settings import settings
from perennial.storage import object_store
from perennial.storage.landing import FeedSchema
from perennial.validation.gx_evaluator import ValidationOutcome

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2733;margin:0;background:#fff}
.navbar,.cta-footer,footer,.modal,.ge-walkthrough-modal,script{display:none!important}
.container-fluid{max-width:72rem;margin:0 auto;padding:1rem}
.perennial{max-width:70rem;margin:1rem auto 0;padding:.8rem 1rem;border-left:6px solid #2b7a4b;background:#eef7f1}
.perennial.stopped{border-color:#b3261e;background:#fdeeed}
h4,h5{margin:1.2rem 0 .4rem} p{margin:.2rem 0} ul{margin:.2rem 0;padding-left:1.2rem}
table{border-collapse:collapse;width:100%;margin:.3rem 0 1rem}
td,th{border-bottom:1px solid #dde3e8;padding:.35rem .6rem;text-align:left;vertical-align:top;overflow-wrap:anywhere}
.badge{background:#e8edf2;border-radius:3px;padding:0 .3em;font-family:ui-monospace,monospace;font-size:.9em}
.text-danger{color:#b3261e} .text-success{color:#2b7a4b}
.fa-check-circle::before{content:"\\2713"} .fa-times::before,.fa-times-circle::before{content:"\\2717"}
.fa-exclamation-triangle::before{content:"\\26a0"}
.fa-check-circle,.fa-times,.fa-exclamation-triangle{font-style:normal;font-weight:700;font-size:1.1em}
.card-header{font-weight:600} .alert{background:#f4f6f8;padding:.3rem .6rem;margin:.8rem 0 0}
.nav{list-style:none;padding:0;columns:4 12rem} a{color:#1d5fa7;text-decoration:none}
.collapse:not(.show){display:block} .popover,.cooltip .top,.sticky,a[data-toggle]{display:none}
a[href^=".."]{color:inherit;pointer-events:none}
@media (prefers-color-scheme:dark){body{background:#14191f;color:#dce3ea} .perennial{background:#16261c}
.perennial.stopped{background:#2d1917} td,th{border-color:#2c3640} .badge,.alert{background:#232c35} a{color:#7db4ee}}
"""


def data_doc_uri(model: str, day: str, extension: str, kind: str = "rows") -> str:
    """The URI of the data doc of a partition.

    Args:
        model: name of the model.
        day: partition date.
        extension: ``html`` or ``json``.
        kind: of the feed: ``rows`` or ``labels``.
    """
    suffix = "" if kind == "rows" else f"-{kind}"
    return f"{settings().lake}/reports/{model}/validation/{day}{suffix}.{extension}"


def suite_result(outcome: ValidationOutcome, feed: FeedSchema, suite_name: str) -> dict[str, Any]:
    """Compose Great Expectations' result of the whole suite, as JSON.

    ``success`` is true if the partition may be published.

    Args:
        outcome: the partition's outcome.
        feed: its feed.
        suite_name: name of the suite.
    """
    import great_expectations
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult

    evaluated = len(outcome.results)
    successful = sum(bool(r.success) for r in outcome.results)
    suite = ExpectationSuiteValidationResult(
        success=not outcome.stopped,
        results=[],
        suite_name=suite_name,
        suite_parameters={},
        statistics={
            "evaluated_expectations": evaluated, "successful_expectations": successful,
            "unsuccessful_expectations": evaluated - successful,
            "success_percent": 100 * successful / evaluated if evaluated else None,
        },
        meta={
            "great_expectations_version": great_expectations.__version__,
            "run_id": {"run_name": f"{feed.model} {outcome.day}", "run_time": f"{outcome.day}T00:00:00+00:00"},
            "batch_spec": {"partition_date": outcome.day, "feed": feed.kind},
            "active_batch_definition": {"datasource_name": feed.model, "data_asset_name": feed.kind,
                                        "batch_identifiers": {"partition_date": outcome.day}},
            "perennial": {
                "verdict": "stopped" if outcome.stopped else "published", "rows": outcome.rows,
                "quarantined": outcome.quarantined, "broken": outcome.bad_rows_by_check, "stopped": outcome.stopped,
                "declared": outcome.declared, "evaluated": outcome.evaluated,
            },
        },
    )  # fmt: skip
    # The suite's own conversion would convert its results twice.
    return {**suite.to_json_dict(), "results": [result.to_json_dict() for result in outcome.results]}


def write_data_doc(outcome: ValidationOutcome, feed: FeedSchema, suite_name: str, *, page: bool) -> str:
    """Write the result of a partition's validation as JSON and optionally as a page.

    Args:
        outcome: the partition's outcome.
        feed: its feed.
        suite_name: name of the suite.
        page: also write the page.

    Returns:
        The URI of the page, or of the JSON file where there is no page.
    """
    result = suite_result(outcome, feed, suite_name)
    json_uri = data_doc_uri(feed.model, outcome.day, "json", feed.kind)
    object_store.write_text(json_uri, json.dumps(result, indent=1, default=str))
    if not page:
        return json_uri
    page_uri = data_doc_uri(feed.model, outcome.day, "html", feed.kind)
    return object_store.write_text(page_uri, render_data_doc(result))


def render_data_doc(result: dict[str, Any]) -> str:
    """Render the page of a suite's result, without external scripts, styles and images.

    Args:
        result: as `suite_result` gives it.
    """
    from great_expectations.core.expectation_validation_result import expectationSuiteValidationResultSchema
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer

    content = expectationSuiteValidationResultSchema.load(html.protect(result))
    document = ValidationResultsPageRenderer().render(content)
    page: str = _view().render(document, show_how_to_buttons=False)
    page = re.sub(
        r"<script\b.*?</script\s*>|<link\b[^>]*>|<img\b[^>]*>|<style\b.*?</style\s*>",
        "",
        page,
        flags=re.S | re.I,
    )
    title = html.escape(f"{result['suite_name']} {result['meta']['batch_spec']['partition_date']}")
    page = re.sub(r"<title>.*?</title>", "", page, flags=re.S)
    page = page.replace("<head>", f"<head><title>{title}</title><style>{_STYLE}</style>", 1)
    page = page.replace("<body>", "<body>" + _banner(result), 1)
    return html.placeholders_to_html(page)


@functools.cache
def _view() -> Any:
    """The renderer with its compiled templates; cached, and inherited by forked processes."""
    from great_expectations.render.view import DefaultJinjaPageView

    return DefaultJinjaPageView()


def _banner(result: dict[str, Any]) -> str:
    """The outcome of the partition, at the top of the page."""
    summary = result["meta"]["perennial"]
    day = result["meta"]["batch_spec"]["partition_date"]
    if summary["stopped"]:
        reasons = "".join(f"<li>{html.escape(r)}</li>" for r in summary["stopped"])
        return (f'<div class="perennial stopped"><b>Partition {day} was stopped: nothing was published.</b>'
                f"<ul>{reasons}</ul></div>")  # fmt: skip
    bad_rows = "".join(f"<li>{n} × {html.escape(label)}</li>" for label, n in summary["broken"].items())
    published = summary["rows"] - summary["quarantined"]
    return (f'<div class="perennial"><b>Partition {day}: {published} of {summary["rows"]} rows published, '
            f"{summary['quarantined']} in quarantine.</b> {summary['evaluated']} of {summary['declared']} declared "
            f"expectations were evaluated.<ul>{bad_rows}</ul></div>")  # fmt: skip
