"""The names that the sources give to things in SQL: aliases, views, tables, common table expressions, parameters."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

from perennial.core.settings import ROOT

#: Sources whose SQL never runs beside a user's names: the sample's own data, and text for people.
_EXCLUDED = ("local_stack/sample/", "cli/spec_reference.py")
#: A name after which only a word in capitals, or nothing, follows is no name: `FROM rows WHERE`.
_NAME = r'"?([a-z_]\w*)"?'
_DEFINITIONS = (
    rf"\bAS {_NAME}",
    rf"\b(?:VIEW|TABLE)(?: IF (?:NOT )?EXISTS)? {_NAME}",
    rf"\bWITH {_NAME} AS",
    rf"\bVARIABLE {_NAME}",
    rf"\blambda {_NAME}:",
    rf"\bgetvariable\('{_NAME}'\)",
    # the name that a relation gets: `FROM rows r`, `JOIN (SELECT …) r ON`
    rf"\b(?:FROM|JOIN) (?:\{{\}}|\w+|\([^()]*\)) {_NAME}(?= ?$| ?,| [A-Z{{])",
    rf"\b(?:FROM|JOIN) {_NAME}(?= ?$| ?[,)]| [A-Z{{_])",
)
#: Calls whose string arguments name a view.
_CALLS = ("register", "unregister", "create_view", "create_label_view", "create_landed_view")
#: What an author's SQL reads, or must return.
AUTHORS = frozenset({"rows", "history", "period", "starts_at", "ends_at", "valid_from"})
#: Columns of the lake's tables; `ModelSpec.lake_column` renames them if the key has such a column.
LAKE_COLUMNS = frozenset({
    "label", "arrived", "prediction", "probabilities", "model_version", "run_id", "scored_at", "feed", "feed_date",
    "row_values", "reasons", "features", "scored_from", "partition_date",
})  # fmt: skip


@cache
def sql_names() -> dict[str, str]:
    """Where each name is given, by name."""
    names: dict[str, str] = {}
    for package in ("include/perennial", "plugins/perennial_airflow"):
        for path in sorted((ROOT / package).rglob("*.py")):
            where = path.relative_to(ROOT).as_posix()
            if any(part in where for part in _EXCLUDED):
                continue
            for line, name in names_in(path.read_text("utf-8")):
                names.setdefault(name, f"{where}:{line}")
    return names


def names_in(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each name that a module's SQL gives."""
    tree = ast.parse(source)
    expressions = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    documentation = {id(value) for value in expressions if isinstance(value, ast.Constant)}
    for node in ast.walk(tree):
        if id(node) in documentation:
            continue
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for value in node.args if called in _CALLS else ():
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield node.lineno, value.value
        text = _text(node)
        for pattern in _DEFINITIONS if text else ():
            for match in re.finditer(pattern, text):
                yield node.lineno, match[1]


def _text(node: ast.AST) -> str:
    """The text of a string, with ``{}`` for what an f-string inserts."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
    return ""
