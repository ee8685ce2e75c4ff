"""The card of a version says what its training was, and what is not known; machines can read it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.console.app import create_app
from perennial.console.host import LocalHost
from perennial.governance import model_explanation, version_documents
from perennial.governance.model_card import annex_iv, collection, document, stored
from perennial.governance.model_card.bill_of_materials import bill_of_materials
from perennial.governance.model_card.collection import Training
from perennial.governance.model_card.content import Feature, ModelCard, parse, without_columns
from perennial.governance.model_card.metadata import metadata_block
from perennial.governance.model_card.sections import card_sections
from perennial.modeling import registry
from perennial.modeling.performance import Estimate, Performance, SlicePerformance
from perennial.modeling.registry import ModelVersion
from perennial.spec.policies import CardSpec
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind
from perennial.training.gate.fairness import Disparity, Fairness, FairnessVerdict, GroupRate
from perennial.training.tracking import RegisteredVersion

SCHEMA = JsonStrictValidator(SchemaVersion.V1_7)
#: Everything that people can say of a model.
STATED = CardSpec.model_validate(
    {
        "license": "apache-2.0", "intended_use": ["To plan crews."], "out_of_scope": ["To rate people."],
        "risks": [{"risk": "A crew waits.", "mitigation": "A planner looks."}, {"risk": "Noise."}],
        "groups": [{"group": "Crews", "harms": "Longer days.", "mitigation": "Limits."}],
        **{key: ["One.", "Two."] for key in ("users", "limitations", "tradeoffs", "standards")},
        **dict.fromkeys(("provider", "oversight", "deployment", "instructions", "data_origin", "metric_choice",
                         "security", "risk_management", "declaration", "post_market"), "As the handbook says."),
    }
)  # fmt: skip


def version_of(world: Any) -> ModelVersion:
    return registry.get_recorded_version(world.spec.name, world.result["version"])


def card_of(world: Any) -> ModelCard:
    return stored.read(version_of(world), world.spec)


def front_matter(text: str) -> Any:
    return yaml.safe_load(text.split("---\n")[1])


def compared(columns: dict[str, tuple[str, str]], declared: tuple[str, ...] = ()) -> Fairness:
    """The fairness of two groups of each column; that of the first column is within its bound."""
    disparities, verdicts = [], []
    for number, (column, (low, high)) in enumerate(columns.items()):
        groups = (GroupRate(low, 90, 0.1, 0.05, 0.15), GroupRate(high, 80, 0.4, 0.3, 0.5))
        disparities.append(
            Disparity((column,), "error rate", "", groups, difference=0.3, low=0.2, high=0.4, ratio=0.25)
        )
        sentence = f"fairness by {column}, error rate: 0.1 of {low}, 0.4 of {high}"
        bound = 0.2 if number else 0.35
        verdicts.append(
            FairnessVerdict(
                (column,), "error_rate", "difference", bound, 0.3, not number, low, high, sentence, high
            )
        )
    return Fairness(0.95, 50, disparities, verdicts, declared)


def problems(card: ModelCard) -> Any:
    return SCHEMA.validate_str(json.dumps(bill_of_materials(card)))


def test_the_card_says_what_the_training_was(world: Any) -> None:
    card, result, version = card_of(world), world.result, version_of(world)
    assert (card.model, card.version, card.run_id) == (world.spec.name, result["version"], result["run_id"])
    assert (card.as_of, card.reason, card.passed) == (result["as_of"], "first", True)
    assert card.metrics == result["metrics"] and card.rows == result["rows"]
    assert card.periods == {"trained": str(version.trained_range), "holdout": str(version.holdout_range)}
    versions = result["dataset_version"]
    assert {d.kind: d.version for d in card.datasets} == {
        "rows": versions["published"],
        "labels": versions["labels"],
        "reference table": versions["references"]["places"],
    }
    recorded = registry.recorded(version).digests
    assert card.digests["model.ubj"] == result["digest"]
    assert card.digests == {name: recorded[name] for name in card.digests} and len(card.digests) > 8
    against = result["gate"]["against_baselines"]["constant"]
    (constant,) = [c for c in card.comparisons if c.other == "baseline: constant"]
    assert constant.improvement == pytest.approx(against["improvement"], abs=1e-6)
    assert card.criteria == result["gate"]["reasons"] and card.readme == "A toy.\n"
    sources = {f.name: f.sources for f in card.features}
    assert (sources["x"], sources["hour"], sources["k"]) == (["x"], ["seen_at"], ["k"])
    assert {"places.size", "place"} <= set(cast("list[str]", sources["size"]))
    assert {f.name: f.importance for f in card.features} == registry.load_json_artifact(
        version, "importance.json"
    )
    assert parse(json.loads(json.dumps(card.as_dict()))) == card
    assert (card.previous, card.changes) == ("", [])


def test_the_stored_files_are_the_card_and_follow_their_formats(world: Any) -> None:
    version, card = version_of(world), card_of(world)
    for name, content in stored.files(card).items():
        assert registry.download_artifact(version, name).read_text("utf-8") == content
    block = front_matter(stored.markdown(card))
    assert (block["library_name"], block["pipeline_tag"]) == ("xgboost", "tabular-classification")
    assert "license" not in block, "nobody has named one"
    (index,) = block["model-index"]
    for result in index["results"]:  # what the Hub requires of each
        assert result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
        assert all({"type", "value"} <= set(metric) for metric in result["metrics"])
    values = {m["type"]: m["value"] for m in index["results"][0]["metrics"]}
    assert values == pytest.approx(world.result["metrics"], abs=1e-6)
    document_ = bill_of_materials(card)
    assert problems(card) is None
    model = document_["metadata"]["component"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": world.result["digest"]}]
    (loss,) = [
        m for m in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"] if m["type"] == "log_loss"
    ]
    assert float(loss["value"]) == pytest.approx(world.result["metrics"]["log_loss"], rel=1e-5)
    interval = loss["confidenceInterval"]
    assert float(interval["lowerBound"]) < float(loss["value"]) < float(interval["upperBound"])
    assert {c["purl"].split("@")[0] for c in document_["components"] if c["type"] == "library"} >= {
        "pkg:pypi/xgboost"
    }
    assert document_["serialNumber"] == bill_of_materials(card)["serialNumber"], (
        "the same for the same version"
    )


def test_the_schema_refuses_what_it_should(world: Any) -> None:
    content = bill_of_materials(card_of(world))
    content["metadata"]["component"]["modelCard"]["considerations"] = {"useCases": "none"}
    assert SCHEMA.validate_str(json.dumps(content)) is not None


def test_a_gap_is_marked_until_somebody_fills_it(world: Any) -> None:
    card = card_of(world)
    headings = [s.heading for s in annex_iv.annex_sections(card)]
    assert [h.split(".")[0] for h in headings] == [str(n) for n in range(1, 10)]
    gaps = document.gaps(annex_iv.annex_sections(card))
    assert "Provider: not known: add card.provider to model.yaml." in [gap.text for gap in gaps]
    assert "> **Gap.** Provider: not known: add card.provider to model.yaml." in stored.annex(card)
    keys = {key for gap in gaps for key in re.findall(r"card\.(\w+)", gap.text)}
    assert keys <= set(CardSpec.model_fields), "each can be added"
    asked = {
        key for gap in document.gaps(card_sections(card)) for key in re.findall(r"card\.(\w+)", gap.text)
    }
    assert keys | asked == set(CardSpec.model_fields), "each key fills a gap"
    filled = replace(card, statements=STATED, approvers=["ada"], fairness=compared({}))
    left = [*document.gaps(annex_iv.annex_sections(filled)), *document.gaps(card_sections(filled))]
    assert [gap.remedy[:25] for gap in left] == ["add to card.deployment in"]
    assert problems(filled) is None and front_matter(stored.markdown(filled))["license"] == "apache-2.0"
    considerations = bill_of_materials(filled)["metadata"]["component"]["modelCard"]["considerations"]
    assert considerations["ethicalConsiderations"][0]["mitigationStrategy"] == "A planner looks."
    assert considerations["fairnessAssessments"][0]["groupAtRisk"] == "Crews"


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(
    TEXT,
    TEXT,
    TEXT,
    st.sampled_from(["x", "a|b", "<img src=x onerror=alert(1)>", "# no", "\\", "`", "'\"", "--- "]),
)
def test_unusual_names_break_no_format(world: Any, owner: str, value: str, name: str, mark: str) -> None:
    card = card_of(world)
    estimate = {"log_loss": Estimate(0.5, 0.4, 0.6)}
    measured = Performance(
        0.95, "rows", 9, {**estimate}, {}, [SlicePerformance(mark + name, value, 9, estimate, {})]
    )
    odd = replace(
        card,
        owner=owner + mark,
        description=mark + value,
        performance=measured,
        metrics={"log_loss": 0.5},
        inputs={name: "string", mark: "number"},
        features=[Feature(name + mark, "number", 0.5, [name], mark)],
        personal_columns=[name + mark],
        statements=STATED.model_copy(update={"limitations": [value + mark]}),
        fairness=compared({"k": ("a", "b"), mark + name: (value + mark, mark)}),
    )
    assert problems(odd) is None
    assert front_matter(metadata_block(odd))["model-index"][0]["results"][1]["metrics"][0]["value"] == 0.5
    page = stored.html(odd)
    assert "<img" not in page and page.count("<table") == page.count("</table>")
    for line in stored.markdown(odd).splitlines():
        if line.startswith("| feature |"):
            columns = line.count("|")
    row = next(line for line in stored.markdown(odd).splitlines() if "| number | 50.0% |" in line)
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == columns, "a name ends no cell"
    again = parse(json.loads(json.dumps(odd.as_dict())))
    assert replace(again, statements=odd.statements) == odd
    assert again.statements.limitations == [(value + mark).strip()]


def test_slices_of_what_is_personal_by_now_are_left_out(world: Any) -> None:
    estimate = {"log_loss": Estimate(0.5, 0.4, 0.6)}
    slices = [SlicePerformance(c, "Ada", 9, estimate, {}) for c in ("who", "k")]
    measured = Performance(0.95, "rows", 9, estimate, {}, slices, {"who": 3})
    card = replace(card_of(world), performance=measured, criteria=["ok: slice who = Ada: fine", "ok: all"])
    shown = without_columns(card, ["who"])
    assert shown.performance is not None and [s.column for s in shown.performance.slices] == ["k"]
    assert "who" not in json.dumps(shown.as_dict()) and shown.criteria == ["ok: all"]


def test_groups_of_what_is_personal_by_now_are_left_out_unless_the_spec_named_them(world: Any) -> None:
    fairness = compared({"k": ("x who", "y"), "who": ("Ada", "Bob"), "sex": ("f", "m")}, ("sex",))
    criteria = ["ok: all", *(f"{'ok' if v.met else 'FAILED'}: {v.sentence}" for v in fairness.verdicts)]
    card = replace(card_of(world), performance=None, fairness=fairness, criteria=criteria)
    shown = without_columns(card, ["who", "sex"])
    assert shown.criteria == [criteria[0], criteria[1], criteria[3]], "and what only resembles one stays"
    assert shown.fairness is not None and [d.columns for d in shown.fairness.compared] == [("k",), ("sex",)]
    assert [v.columns for v in shown.fairness.verdicts] == [("k",), ("sex",)]
    for text in (*stored.files(shown).values(), stored.html(shown)):
        assert "Ada" not in text and "Bob" not in text
    assert all("Ada" in text for text in stored.files(card).values())


def test_gaps_between_groups_are_figures_in_every_form(world: Any) -> None:
    card = replace(card_of(world), fairness=compared({"k": ("a", "b"), "sex": ("f", "m")}), criteria=[])
    model = bill_of_materials(card)["metadata"]["component"]["modelCard"]
    metrics = model["quantitativeAnalysis"]["performanceMetrics"]
    by_slice = {(m.get("slice"), m["type"]): m for m in metrics}
    rate, gap = by_slice["sex = m", "error rate"], by_slice["sex", "difference of error rate"]
    assert (float(rate["value"]), float(gap["value"])) == (0.4, 0.3)
    assert rate["confidenceInterval"] == {"lowerBound": "0.3", "upperBound": "0.5"}
    assert float(by_slice["k", "ratio of error rate"]["value"]) == 0.25
    (unmet,) = model["considerations"]["fairnessAssessments"]
    assert unmet["groupAtRisk"] == "sex = m" and unmet["harms"].startswith(
        "fairness by sex, error rate: 0.1 of f"
    )
    assert problems(card) is None
    (index,) = front_matter(metadata_block(card))["model-index"]
    (women,) = [r for r in index["results"] if r["dataset"].get("config") == "sex = f"]
    (metric,) = women["metrics"]
    assert (metric["type"], metric["value"]) == ("error rate", 0.1)
    assert metric["args"] == {"confidence": 0.95, "interval": [0.05, 0.15]}
    for text in (stored.markdown(card), stored.annex(card)):
        assert text.count("| sex | error rate | difference | 0.3 | at most 0.2 | f | m | exceeded |") == 1
        assert "| error rate | m | 80 | 0.4 (0.3 to 0.5) |" in text and "fairness by sex" not in text


def test_what_was_done_is_said_and_nothing_else(world: Any) -> None:
    card = card_of(world)
    one = replace(card, parameters={**card.parameters, "search_trials": "0"}, comparisons=[])
    text = stored.annex(one)
    assert "no others were tried. It was compared with no other model." in text and "best of" not in text
    seven = stored.annex(replace(card, parameters={**card.parameters, "search_trials": "7"}))
    assert "Its parameters are the best of 7 that were tried" in seven
    assert "it was compared with: baseline: constant" in seven


@pytest.mark.parametrize(
    ("readme", "ends"),
    [
        ("````md\n```\n# code", ["# code", "````"]),
        ("~~~\n# code\n~~~\n# Title", ["# code", "~~~", "### Title"]),
        ("<!-- cut\n# comment", ["# comment", "-->"]),
        ("``` `x` \n# Title", ["### Title"]),
    ],
)
def test_a_readme_ends_what_it_begins(readme: str, ends: list[str]) -> None:
    section = document.Section("README", [document.Authored(readme)])
    lines = [line for line in document.to_markdown("Card", [section]).splitlines() if line]
    assert lines[-len(ends) :] == ends


def test_changes_since_the_version_before_are_those_of_keys_and_files(world: Any) -> None:
    later = replace(version_of(world), version="2")
    assert collection._previous(world.spec, later) == ("1", [])
    content = world.spec.model_dump(mode="json")
    content["alerts"] = {"mute": [{"signals": ["*"], "until": "2024-03-01", "reason": "a strike"}]}
    content["training"]["rounds"] += 1
    changed = type(world.spec).model_validate(content)
    changed._sql, changed._suite, changed._readme = world.spec.sql + " ", world.spec.suite, "Another."
    assert collection._previous(changed, later) == ("1", ["README.md", "features.sql", "training.rounds"])


def test_the_command_prints_every_form_with_what_was_decided_since(
    world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name, number = world.spec.name, world.result["version"]
    monkeypatch.setenv("PERENNIAL_MODELS", str(world.spec.folder.parent))

    def run(*arguments: str) -> str:
        outcome = CliRunner().invoke(app, ["card", name, *arguments])
        assert outcome.exit_code == 0, outcome.output
        return outcome.output

    text = run()
    assert "| promotion | promoted | gate |" in text and f"perennial reproduce {name} {number}" in text
    ledger.append(
        name,
        kind=LedgerKind.APPROVAL,
        decision=Decision.APPROVED,
        reason="approved by ada: reviewed",
        actor="ada",
        model_version=number,
        evidence={"run_id": world.result["run_id"]},
    )
    assert "| approval | approved | ada |" in run(number, "--format", "annex-iv")
    assert SCHEMA.validate_str(run(number, "-f", "bom")) is None
    assert run("-f", "html").startswith("<!DOCTYPE html>") and "<script" not in run("-f", "explanation")
    file = tmp_path / "card.html"
    assert run("-f", "html", "-o", str(file)) == "" and "approved by ada" in file.read_text("utf-8")
    outcome = CliRunner().invoke(app, ["card", name, "-o", str(tmp_path / "no" / "folder")])
    assert "cannot be written" in str(outcome.exception)
    outcome = CliRunner().invoke(app, ["card", name, "99"])
    assert "there is no version 99" in str(outcome.exception)


def test_the_console_shows_the_documents(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_MODELS", str(world.spec.folder.parent))
    browser = TestClient(create_app(LocalHost()), base_url="http://127.0.0.1")
    page = f"/models/{world.spec.name}/versions/{world.result['version']}"
    version = browser.get(page).text
    for path, words in (("card", "What it does"), ("explanation", "mean absolute contribution")):
        assert f'href="{page}/{path}"' in version
        answer = browser.get(f"{page}/{path}")
        assert answer.status_code == 200 and words.lower() in answer.text.lower()
    assert "9. Post-market monitoring" in browser.get(f"{page}/annex-iv").text
    assert browser.get(f"{page}/card.json").json()["content"]["metrics"] == world.result["metrics"]
    assert SCHEMA.validate_str(browser.get(f"{page}/bom.json").text) is None
    assert browser.get(f"{page}/card.md").text.startswith("---\n")
    assert browser.get(f"{page}/annex-iv.md").text.startswith("# Technical documentation")
    assert browser.get(f"/models/{world.spec.name}/versions/99/card").status_code == 404


def test_a_card_that_cannot_be_written_stops_nothing(
    world: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    version, absent = version_of(world), cast("Any", None)
    explanation = registry.load_json_artifact(version, model_explanation.ARTIFACT)
    documents = {model_explanation.ARTIFACT: explanation}
    training = Training(world.spec, absent, absent, absent, absent, documents)
    files = version_documents.describe(training, RegisteredVersion(version, version.tags, {}))
    assert list(files) == [model_explanation.PAGE], "the rest is written"
    assert f"the card of {world.spec.name}, version {version.version}, could not be drawn" in caplog.text
    monkeypatch.setattr(registry, "has_artifact", lambda *_: False)
    with pytest.raises(Exception, match="has no card: it was trained before"):
        stored.read(version, world.spec)
    with pytest.raises(Exception, match="has no explanation"):
        model_explanation.read(version, world.spec)


def test_of_many_features_the_most_important_ones_are_listed(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "MAX_FEATURES", 2)
    monkeypatch.setattr(collection, "MAX_TRACED", 3)
    version, absent = version_of(world), cast("Any", None)
    importance = registry.load_json_artifact(version, "importance.json")
    candidate = cast("Any", SimpleNamespace(model=registry.load_model(version)))
    documents = {"importance.json": importance}
    listed = collection._features(Training(world.spec, absent, absent, candidate, absent, documents))
    most = sorted(importance, key=lambda name: -importance[name])[:2]
    assert len(importance) > 3 and [(f.name, f.sources) for f in listed] == [(name, None) for name in most]
