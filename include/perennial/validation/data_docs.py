"""Data docs: Great Expectations' own page of a partition's validation, self-contained and safe to open.

Its templates put column names and values into the page as they are, and load scripts and styles from six other hosts.
So every text is guarded before it is rendered, and what the page would load is replaced by a small style of our own.
"""

from __future__ import annotations

import functools
import html
import json
import re
from typing import Any

from perennial.core.settings import settings
from perennial.storage import object_store
from perennial.storage.landing import FeedSchema
from perennial.validation.gx_evaluator import ValidationOutcome

#: Characters with a meaning in HTML or in Great Expectations' string templates, and stand-ins from Unicode's private
#: use area that pass through rendering untouched.
_GUARDED = "<>&\"'$`"
_GUARD = {ord(c): 0xE000 + i for i, c in enumerate(_GUARDED)} | {
    0xE000 + i: 0xFFFD for i in range(len(_GUARDED))
}
_UNGUARD = {0xE000 + i: html.escape(c) if c in "<>&\"'" else f"&#{ord(c)};" for i, c in enumerate(_GUARDED)}

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


def data_doc_uri(model: str, day: str, extension: str, what: str = "rows") -> str:
    """Where the data doc of a partition is kept."""
    return f"{settings().lake}/reports/{model}/validation/{day}{'' if what == 'rows' else '-' + what}.{extension}"


def suite_json(outcome: ValidationOutcome, feed: FeedSchema, suite_name: str) -> dict[str, Any]:
    """Great Expectations' result of the whole suite, as JSON; its success is that the partition may be published."""
    import great_expectations
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult

    good = sum(bool(r.success) for r in outcome.results)
    suite = ExpectationSuiteValidationResult(
        success=not outcome.stopped,
        results=[],
        suite_name=suite_name,
        suite_parameters={},
        statistics={
            "evaluated_expectations": len(outcome.results), "successful_expectations": good,
            "unsuccessful_expectations": len(outcome.results) - good,
            "success_percent": 100 * good / len(outcome.results) if outcome.results else None,
        },
        meta={
            "great_expectations_version": great_expectations.__version__,
            "run_id": {"run_name": f"{feed.model} {outcome.day}", "run_time": f"{outcome.day}T00:00:00+00:00"},
            "batch_spec": {"partition_date": outcome.day, "feed": feed.what},
            "active_batch_definition": {"datasource_name": feed.model, "data_asset_name": feed.what,
                                        "batch_identifiers": {"partition_date": outcome.day}},
            "perennial": {
                "verdict": "stopped" if outcome.stopped else "published", "rows": outcome.rows,
                "quarantined": outcome.quarantined, "broken": outcome.broken, "stopped": outcome.stopped,
                "declared": outcome.declared, "evaluated": outcome.evaluated,
            },
        },
    )  # fmt: skip
    # A suite's own conversion converts its results twice.
    return {**suite.to_json_dict(), "results": [result.to_json_dict() for result in outcome.results]}


def write_data_doc(outcome: ValidationOutcome, feed: FeedSchema, suite_name: str, *, page: bool) -> str:
    """Keep the result as JSON and, if asked for, as a page; returns where a person looks."""
    result = suite_json(outcome, feed, suite_name)
    kept = object_store.write_text(
        data_doc_uri(feed.model, outcome.day, "json", feed.what), json.dumps(result, indent=1, default=str)
    )
    if not page:
        return kept
    return object_store.write_text(
        data_doc_uri(feed.model, outcome.day, "html", feed.what), render_data_doc(result)
    )


def render_data_doc(content: dict[str, Any]) -> str:
    """The page of a suite's result (as JSON): Great Expectations' own, guarded, without anything from elsewhere."""
    from great_expectations.core.expectation_validation_result import expectationSuiteValidationResultSchema
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer

    result = expectationSuiteValidationResultSchema.load(_guard(content))
    document = ValidationResultsPageRenderer().render(result)
    page: str = _view().render(document, show_how_to_buttons=False)
    page = re.sub(
        r"<script\b.*?</script\s*>|<link\b[^>]*>|<img\b[^>]*>|<style\b.*?</style\s*>",
        "",
        page,
        flags=re.S | re.I,
    )
    title = html.escape(f"{content['suite_name']} {content['meta']['batch_spec']['partition_date']}")
    page = re.sub(r"<title>.*?</title>", "", page, flags=re.S)
    page = page.replace("<head>", f"<head><title>{title}</title><style>{_STYLE}</style>", 1)
    page = page.replace("<body>", "<body>" + _banner(content), 1)
    return page.translate(_UNGUARD)


@functools.cache
def _view() -> Any:
    """The renderer with its compiled templates, which a forked process inherits."""
    from great_expectations.render.view import DefaultJinjaPageView

    return DefaultJinjaPageView()


def _banner(content: dict[str, Any]) -> str:
    facts = content["meta"]["perennial"]
    day = content["meta"]["batch_spec"]["partition_date"]
    if facts["stopped"]:
        reasons = "".join(f"<li>{html.escape(r)}</li>" for r in facts["stopped"])
        return (f'<div class="perennial stopped"><b>Partition {day} was stopped: nothing was published.</b>'
                f"<ul>{reasons}</ul></div>")  # fmt: skip
    broken = "".join(f"<li>{n} × {html.escape(label)}</li>" for label, n in facts["broken"].items())
    kept = facts["rows"] - facts["quarantined"]
    return (f'<div class="perennial"><b>Partition {day}: {kept} of {facts["rows"]} rows published, '
            f"{facts['quarantined']} in quarantine.</b> {facts['evaluated']} of {facts['declared']} declared "
            f"expectations were evaluated.<ul>{broken}</ul></div>")  # fmt: skip


def _guard(value: Any) -> Any:
    if isinstance(value, str):
        return value.translate(_GUARD)
    if isinstance(value, dict):
        return {_guard(k): _guard(v) for k, v in value.items()}
    return [_guard(v) for v in value] if isinstance(value, list | tuple) else value
