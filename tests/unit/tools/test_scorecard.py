"""The scorecard: its rubric names tests that there are, and only those that pass earn points."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from typing import Any

import pytest

from perennial.core.settings import ROOT

SECTIONS = ("Data", "Model", "Infrastructure", "Monitoring")


@pytest.fixture(scope="module")
def scorecard() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "scorecard" / "__main__.py"), run_name="scorecard")


def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_rubric_has_the_28_tests_and_names_tests_that_there_are(scorecard: dict[str, Any]) -> None:
    items = scorecard["rubric"]()
    sections = [item.section for item in items]
    assert {s: sections.count(s) for s in sections} == dict.fromkeys(SECTIONS, 7)
    named = [check.split("::") for item in items for check in item.checks]
    assert [f"{file}::{name}" for file, name in named if name not in functions(file)] == []


def test_the_page_is_what_the_tests_earn_when_all_pass(scorecard: dict[str, Any]) -> None:
    items = scorecard["rubric"]()
    passed = {check: True for item in items for check in item.checks}
    page = (ROOT / "docs" / "scorecard.md").read_text("utf-8")
    assert page == scorecard["page"](items, passed), "run: make scorecard"


def test_what_fails_is_skipped_or_did_not_run_earns_nothing(
    scorecard: dict[str, Any], tmp_path: Path
) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.unit.a.test_a" name="test_good[1]"/>'
        '<testcase classname="tests.unit.a.test_a" name="test_good[2]"/>'
        '<testcase classname="tests.unit.a.test_a" name="test_half[1]"/>'
        '<testcase classname="tests.unit.a.test_a" name="test_half[2]"><failure/></testcase>'
        '<testcase classname="tests.unit.a.test_a" name="test_skipped"><skipped/></testcase>'
        "</testsuite></testsuites>"
    )
    passed, item = scorecard["results"](report), scorecard["Item"]

    def points(*names: str, by_hand: str = "") -> float:
        checks = tuple(f"tests/unit/a/test_a.py::{name}" for name in names)
        return float(scorecard["points"](item("Data", "t", "h", checks, by_hand), passed))

    assert points("test_good") == 1
    assert points("test_good", "test_half") == points("test_skipped") == points("test_absent") == 0
    assert points("test_half", by_hand="a.md") == 0, "a failing check is not made up for by a page"
    assert (points(by_hand="a.md"), points()) == (0.5, 0)
