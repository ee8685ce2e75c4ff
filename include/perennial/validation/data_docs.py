"""Data docs: Great Expectations' page of a partition's validation, self-contained and safe to open.

Its templates put column names and values into the page without escaping, and load scripts and styles from six hosts.
So every text is protected before it is rendered (see `perennial.core.html`), and a small style sheet replaces what the
page would load.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from perennial.charts import page as page_frame
from perennial.core import html
from perennial.core.errors import StorageError
from perennial.core.settings import settings
from perennial.feeds.feed_schema import FeedSchema
from perennial.storage import object_store, pages
from perennial.validation.gx_evaluator import ValidationOutcome

log = logging.getLogger("perennial")
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:light-dark(#1f2328,#dce3ea);margin:0;background:var(--chart-surface)}
.navbar,.cta-footer,footer,.modal,.ge-walkthrough-modal,script{display:none!important}
.container-fluid{max-width:72rem;margin:0 auto;padding:1rem}
h4,h5{margin:1.2rem 0 .4rem} p{margin:.2rem 0} ul{margin:.2rem 0;padding-left:1.2rem}
table{border-collapse:collapse;width:100%;margin:.3rem 0 1rem}
td,th{border-bottom:1px solid var(--chart-grid);padding:.35rem .6rem;text-align:left;vertical-align:top}
td,th{overflow-wrap:anywhere}
.badge{background:var(--cal-0);border-radius:3px;padding:0 .3em;font-family:ui-monospace,monospace;font-size:.9em}
.text-danger{color:var(--chart-bad)} .text-success{color:var(--chart-c3)}
.fa-check-circle::before{content:"\\2713"} .fa-times::before,.fa-times-circle::before{content:"\\2717"}
.fa-exclamation-triangle::before{content:"\\26a0"}
.fa-check-circle,.fa-times,.fa-exclamation-triangle{font-style:normal;font-weight:700;font-size:1.1em}
.card-header{font-weight:600} .alert{background:var(--cal-0);padding:.3rem .6rem;margin:.8rem 0 0}
.nav{list-style:none;padding:0;columns:4 12rem} a{color:var(--chart-c1);text-decoration:none}
.collapse:not(.show){display:block} .popover,.cooltip .top,.sticky,a[data-toggle]{display:none}
a[href^=".."]{color:inherit;pointer-events:none}
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
            "run_id": {"run_name": f"{feed.model} {outcome.day}",
                       "run_time": feed.cadence.start_of(outcome.day).isoformat()},
            "batch_spec": {"partition_date": outcome.day, "feed": feed.kind},
            "active_batch_definition": {"datasource_name": feed.model, "data_asset_name": feed.kind,
                                        "batch_identifiers": {"partition_date": outcome.day}},
            "perennial": {
                "verdict": "stopped" if outcome.stopped else "published", "rows": outcome.rows,
                "quarantined": outcome.quarantined, "broken": outcome.bad_rows_by_check, "stopped": outcome.stopped,
                "declared": outcome.declared, "evaluated": outcome.evaluated,
                "in_great_expectations": outcome.in_great_expectations,
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
        The URI of the page, or of the JSON file where there is no page. What cannot be drawn says why.
    """
    title = f"data doc of {feed.model}, {feed.kind} of {outcome.day}"
    json_uri, page_uri = (data_doc_uri(feed.model, outcome.day, e, feed.kind) for e in ("json", "html"))
    result = functools.cache(lambda: suite_result(outcome, feed, suite_name))
    pages.write(title, [json_uri], lambda: [json.dumps(result(), indent=1, default=str)])
    if not page:
        return json_uri
    pages.write(title, [page_uri], lambda: [render_data_doc(result())])
    return page_uri


def remove_outdated(model: str, docs: Mapping[str, str]) -> None:
    """Remove what is left of earlier data docs of partitions, once they were validated again.

    Args:
        model: name of the model.
        docs: what `write_data_doc` returned for the rows of each partition, by date; empty if there is no data doc.
    """
    try:
        stored = object_store.list_files(data_doc_uri(model, "", "")[: -len("/.")])
        for day, uri in docs.items():
            for extension in ("html", "json"):
                written = uri and extension in (uri.rpartition(".")[2], "json")
                if f"{day}.{extension}" in stored and not written:
                    object_store.delete_file(data_doc_uri(model, day, extension))
    except StorageError as error:
        log.warning("Earlier data docs could not be removed: %s", error)


def render_data_doc(result: dict[str, Any]) -> str:
    """Render the page of a suite's result, without external scripts, styles and images.

    Args:
        result: as `suite_result` gives it.
    """
    from great_expectations.core.expectation_validation_result import expectationSuiteValidationResultSchema
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer

    protected = html.protect(result)
    for entry in protected["results"]:
        _restore_operators(entry["expectation_config"]["kwargs"].get("row_condition"))
    content = expectationSuiteValidationResultSchema.load(protected)
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
    page = page.replace(
        "<head>", f"<head><title>{title}</title><style>{page_frame.page_style()}{_STYLE}</style>", 1
    )
    page = page.replace("<html>", '<html lang="en">', 1)
    page = page.replace("<body>", "<body>" + _banner(result), 1)
    return html.placeholders_to_html(page)


def _restore_operators(condition: Any) -> None:
    """Restore the operators of a protected ``row_condition``, in place: Great Expectations parses them."""
    if isinstance(condition, dict):
        if "operator" in condition:
            condition["operator"] = html.restore(condition["operator"])
        for part in condition.get("conditions", ()):
            _restore_operators(part)


@functools.cache
def _view() -> Any:
    """The renderer with its compiled templates; cached, and inherited by forked processes."""
    from great_expectations.render.view import DefaultJinjaPageView

    return DefaultJinjaPageView()


def _banner(result: dict[str, Any]) -> str:
    """The outcome of the partition, at the top of the page."""
    summary = result["meta"]["perennial"]
    day = result["meta"]["batch_spec"]["partition_date"]
    labels = ", ".join(map(html.escape, summary["in_great_expectations"]))
    read = f"<p>Evaluated by Great Expectations itself, not in SQL: {labels}.</p>" if labels else ""
    state = page_frame.tag("stopped" if summary["stopped"] else "published")
    heading = f"<h1>{html.escape(result['suite_name'])}, data doc of {day} {state}</h1>"
    if summary["stopped"]:
        reasons = "".join(f"<li>{html.escape(r)}</li>" for r in summary["stopped"])
        return (f'<main class="perennial">{heading}<b>Partition {day} was stopped: nothing was published.</b>'
                f"<ul>{reasons}</ul>{read}</main>")  # fmt: skip
    bad_rows = "".join(f"<li>{n} × {html.escape(label)}</li>" for label, n in summary["broken"].items())
    published = summary["rows"] - summary["quarantined"]
    return (f'<main class="perennial">{heading}<b>Partition {day}: {published} of {summary["rows"]} rows published, '
            f"{summary['quarantined']} in quarantine.</b> {summary['evaluated']} of {summary['declared']} declared "
            f"expectations were evaluated.<ul>{bad_rows}</ul>{read}</main>")  # fmt: skip
