"""The repository as a whole: its pages, its names, its folders, and the borders between its packages."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

import perennial
import sql_names
from perennial.core.settings import ROOT
from perennial.core.sql import INTERNAL_PREFIX
from perennial.spec.compute_profile import ComputeProfile
from perennial.spec.feature_table import FeatureTable
from perennial.spec.model_spec import ModelSpec
from perennial.spec.sections import FeatureSet

README_LINES = 120
#: Modules of a folder, ``__init__.py`` included.
MODULES_IN_A_FOLDER = 16
LINES_OF_A_FILE = 500
LINES_OF_A_FUNCTION = 60
#: Words that say nothing about a value; a name says what the value is. CONTRIBUTING.md, Words.
BANNED_NAMES = {
    "found", "told", "said", "held", "seen", "wish", "place", "much", "kept", "now", "own", "crew", "abreast",
    "leave",
}  # fmt: skip
#: What takes long to import, or has no business in a DAG file.
HEAVY = {
    "numpy", "pandas", "pyarrow", "duckdb", "deltalake", "xgboost", "sklearn", "scipy", "mlflow", "optuna",
    "evidently", "fairlearn", "great_expectations", "dask", "distributed", "airflow",
}  # fmt: skip
#: Packages and modules that DAG files import when they are parsed.
LIGHT_PACKAGES = ("core", "charts", "feeds", "spec", "storage", "alerting")
LIGHT_MODULES = ("lifecycle.retraining", "steps.dispatch", "steps.result_file", "steps.summaries")
#: Files that the pages name, and that a command writes.
GENERATED = ("docker/.env",)
LIBRARY = ROOT / "include" / "perennial"
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)|<img[^>]*\ssrc=\"([^\"]+)\"")
_CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_TICKED = re.compile(r"`([^`\n]+)`")


@cache
def tracked(*patterns: str) -> tuple[Path, ...]:
    """The repository's files, those not committed yet included; by glob patterns of git."""
    out = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if out.returncode:
        pytest.skip("this is no checkout")
    return tuple(p for p in sorted(ROOT / name for name in out.stdout.split("\0") if name) if p.exists())


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def pages() -> list[Path]:
    """Pages that people wrote, or that are made for people."""
    return list(tracked("*.md"))


# --- pages


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= README_LINES


def test_the_readme_links_every_page() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    wanted = [named(p) for p in pages() if p.parent == ROOT / "docs"] + ["CONTRIBUTING.md", "SECURITY.md"]
    assert [p for p in wanted if f"]({p})" not in text] == []


def links(page: Path) -> Iterator[str]:
    """Targets of links and pictures that lie in this repository."""
    for first, second in _LINK.findall(_CODE.sub("", page.read_text("utf-8"))):
        target = first or second
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ +(.+?) *$", _CODE.sub("", page.read_text("utf-8")), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h)) for h in headings)
    return {h.strip().lower().replace(" ", "-") for h in plain}


def test_every_link_leads_somewhere() -> None:
    broken = []
    for page in pages():
        for target in links(page):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
                broken.append(f"{named(page)}: {target}")
    assert not broken, "\n".join(broken)


def test_every_path_in_the_pages_exists() -> None:
    """A word in backticks is a path of this repository where it begins with one of its folders or files."""
    tops = {p.relative_to(ROOT).parts[0] for p in tracked() if len(p.relative_to(ROOT).parts) > 1}
    unknown = []
    for page in pages():
        for word in _TICKED.findall(_CODE.sub("", page.read_text("utf-8"))):
            if not re.fullmatch(r"\.?[\w.-]+(/[\w.*{},-]*)+", word) or word.split("/")[0] not in tops:
                continue
            if word in GENERATED:
                continue
            if not all(list(ROOT.glob(path)) for path in alternatives(word.rstrip("/"))):
                unknown.append(f"{named(page)}: {word}")
    assert not unknown, "\n".join(unknown)


def alternatives(word: str) -> list[str]:
    """The paths that ``a/{b,c}.py`` stands for."""
    match = re.search(r"\{([^}]*)\}", word)
    if match is None:
        return [word]
    before, after = word[: match.start()], word[match.end() :]
    return [path for part in match[1].split(",") for path in alternatives(before + part + after)]


def test_the_architecture_names_whole_paths() -> None:
    """A module in docs/architecture.md is named by its path from the root, so that it can be opened."""
    text = _CODE.sub("", (ROOT / "docs" / "architecture.md").read_text("utf-8"))
    short = [w for w in _TICKED.findall(text) if re.fullmatch(r"[\w./-]+\.py", w) and not (ROOT / w).exists()]
    assert not short, "\n".join(short)


def test_no_page_names_a_folder_of_somebodys_machine() -> None:
    machine = re.compile(r"(?<![\w./-])/(work|root|home|Users)/")
    hits = [
        f"{named(page)}:{number}: {line.strip()}"
        for page in pages()
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1)
        if machine.search(line)
    ]
    assert not hits, "\n".join(hits)


# --- keys of model.yaml that the pages name


def models_within(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field's type holds: itself, or the items of a list or mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_within(part)


def known_key(model: type[BaseModel], parts: list[str]) -> bool:
    """Whether ``parts`` is the path of a key; keys of a mapping are free."""
    field = model.model_fields.get(parts[0].removesuffix("[]"))
    if field is None:
        return False
    rest = parts[1:]
    if rest and is_mapping(field.annotation):
        rest = rest[1:]
    return not rest or any(known_key(section, rest) for section in models_within(field.annotation))


def is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict or any(is_mapping(part) for part in get_args(annotation))


def unknown_keys(model: type[BaseModel], content: Any, path: str = "") -> Iterator[str]:
    """Keys of a YAML fragment that a section does not have."""
    for key, value in content.items():
        field = model.model_fields.get(key)
        if field is None:
            yield f"{path}{key}"
            continue
        inner = list(models_within(field.annotation))
        items = list(value.values()) if is_mapping(field.annotation) and isinstance(value, dict) else [value]
        for item in items[0] if len(items) == 1 and isinstance(items[0], list) else items:
            if inner and isinstance(item, dict):
                yield from min(
                    (list(unknown_keys(section, item, f"{path}{key}.")) for section in inner), key=len
                )


def test_the_pages_name_no_key_that_a_spec_does_not_have() -> None:
    """``section.key`` in backticks, where ``section`` is one of model.yaml's sections, is a key of it."""
    sections = {
        name for name, field in ModelSpec.model_fields.items() if list(models_within(field.annotation))
    }
    files = (".sql", ".py", ".json", ".yaml", ".md", ".html")
    unknown = []
    for page in pages():
        if page == ROOT / "CHANGELOG.md":  # which names keys of old
            continue
        for word in _TICKED.findall(_CODE.sub("", page.read_text("utf-8"))):
            key = word.split(":")[0].strip()
            if not re.fullmatch(r"\w+(\.[\w<>*]+(\[\])?)+", key.replace("[].", ".")) or key.endswith(files):
                continue
            parts = key.replace("[]", "").split(".")
            if parts[0] in sections and not known_key(ModelSpec, parts):
                unknown.append(f"{named(page)}: {word}")
    assert not unknown, "\n".join(unknown)


def test_the_yaml_examples_of_the_pages_have_no_unknown_key() -> None:
    """An example is a part of a model, a compute profile, a feature set or a feature table, or of Kubernetes."""
    unknown = []
    for page in pages():
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
            content = yaml.safe_load(block)
            if not isinstance(content, dict) or "apiVersion" in content:
                continue
            kinds = [
                list(unknown_keys(m, content)) for m in (ModelSpec, ComputeProfile, FeatureSet, FeatureTable)
            ]
            unknown += [f"{named(page)}: {key}" for key in min(kinds, key=len)]
    assert not unknown, "\n".join(unknown)


# --- versions, actions


def test_there_is_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    if "version" in project.get("dynamic", []):
        return
    assert project["version"] == perennial.__version__


def test_the_changelog_has_the_version_or_what_is_not_released() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert "## [Unreleased]" in text or f"## [{perennial.__version__}]" in text


def test_actions_are_pinned_by_commit() -> None:
    uses = [
        (named(path), reference)
        for path in tracked(".github/workflows/*")
        for reference in re.findall(r"uses: *(.+)", path.read_text("utf-8"))
    ]
    assert uses
    assert [u for u in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", u[1])] == []


def test_hooks_run_what_make_lint_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    entries = " ".join(hook["entry"] for repository in hooks for hook in repository["hooks"])
    for tool in ("ruff check", "ruff format", "lint-imports", "perennial docs --check"):
        assert tool in entries
    assert {repository["repo"] for repository in hooks} == {"local"}, "hooks fetch nothing"


# --- names


def names_bound(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every name that code binds, with its line: variables, attributes, parameters, functions, classes, aliases."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr
            case ast.arg():
                yield node.lineno, node.arg
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, node.name
            case ast.alias(asname=str(name)):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                yield node.lineno, name
            case ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                yield node.lineno, name


def test_names_say_what_a_value_is() -> None:
    hits = [
        f"{named(path)}:{line}: {name}"
        for path in tracked("include/*.py", "plugins/*.py")
        for line, name in sorted(names_bound(ast.parse(path.read_text("utf-8"))))
        if name.strip("_").lower() in BANNED_NAMES
    ]
    assert not hits, f"{len(hits)} names that CONTRIBUTING.md bans are bound:\n" + "\n".join(hits)


# --- folders and packages


def test_names_in_sql_cannot_be_those_of_users() -> None:
    """Aliases, views, parameters … begin with two underscores, which no user's column, feature or table may."""
    known = sql_names.AUTHORS | sql_names.LAKE_COLUMNS
    strangers = [
        f"{where}: {name}" for name, where in sql_names.sql_names().items()
        if not name.startswith(INTERNAL_PREFIX) and name not in known
    ]  # fmt: skip
    assert strangers == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ('f"SELECT x AS total FROM {rows}"', "total"),
        ('"CREATE TEMP VIEW good AS SELECT 1"', "good"),
        ('"WITH good AS (SELECT 1) SELECT * FROM good"', "good"),
        ('f"SELECT * FROM {rows} r JOIN __labels __l ON r.id = __l.id"', "r"),
        ('f"SELECT * FROM ({rows}) m WHERE x"', "m"),
        ('"SELECT list_filter(x, lambda y: y > 0)"', "y"),
        ("\"SELECT getvariable('first')\"", "first"),
        ('con.register("good", table)', "good"),
        ('duckdb_session.create_view(con, "good", uri)', "good"),
    ],
)
def test_names_in_sql_are_seen(source: str, name: str) -> None:
    assert name in [n for _, n in sql_names.names_in(f"x = {source}")]


def test_no_folder_holds_too_many_modules() -> None:
    sizes = Counter(named(p.parent) for p in tracked("*.py"))
    assert {folder: n for folder, n in sizes.items() if n > MODULES_IN_A_FOLDER} == {}


def test_no_file_and_no_function_is_too_long() -> None:
    long = []
    for path in tracked("*.py"):
        text = path.read_text("utf-8")
        if (lines := len(text.splitlines())) > LINES_OF_A_FILE:
            long.append(f"{named(path)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > LINES_OF_A_FUNCTION:
                    long.append(f"{named(path)}:{node.lineno}: {node.name} has {lines} lines")
    assert not long, "\n".join(long)


@cache
def face(package: str) -> tuple[str, tuple[str, ...] | None]:
    """A package's docstring, and its ``__all__``; None where it has none."""
    tree = ast.parse((LIBRARY.parent / package.replace(".", "/") / "__init__.py").read_text("utf-8"))
    exported = None
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
                exported = tuple(ast.literal_eval(node.value))
    return ast.get_docstring(tree) or "", exported


def packages() -> list[str]:
    """The library's packages, by dotted name, without the library itself."""
    inits = tracked("include/perennial/*/__init__.py")
    return [".".join(p.parent.relative_to(LIBRARY.parent).parts) for p in inits]


def modules(package: str) -> list[str]:
    folder = LIBRARY.parent / package.replace(".", "/")
    return [p.stem for p in sorted(folder.glob("*.py")) if not p.name.startswith("__")]


@pytest.mark.parametrize("package", packages())
def test_a_package_says_what_it_is_for_and_what_others_may_use(package: str) -> None:
    docstring, exported = face(package)
    assert docstring, f"{package}/__init__.py has no docstring"
    assert exported is not None, f"{package}/__init__.py has no __all__"
    assert list(exported) == sorted(set(exported))


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts[1:] if parts[0] in ("include", "plugins") else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports() -> Iterator[tuple[str, int, str, str, str]]:
    """Imports of the library's modules and names from another package.

    Yields:
        Importing file, line, package that is imported from, its module, the name of that module; the module or the
        name may be empty.
    """
    known = set(packages())
    for path in tracked("include/*.py", "plugins/*.py", "dags/*.py"):
        module = module_name(path)
        inside = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                pairs = [(node.module, alias.name) for alias in node.names]
            elif isinstance(node, ast.Import):
                pairs = [(alias.name, "") for alias in node.names]
            else:
                continue
            for source, name in pairs:
                if source in known:  # from package import module
                    package, imported, name = source, name, ""
                else:
                    package, _, imported = source.rpartition(".")
                if package in known and package != inside:
                    yield named(path), node.lineno, package, imported, name


def test_a_package_is_entered_by_its_face() -> None:
    wrong = []
    for file, line, package, module, name in imports():
        exported = face(package)[1] or ()
        if f"{package}.{module}" in packages():  # a package of its own, with its own face
            continue
        if module and module not in exported:
            wrong.append(f"{file}:{line}: {package}.__all__ does not name {module}")
        elif name.startswith("_"):
            wrong.append(f"{file}:{line}: {name} is private to {package}.{module}")
    assert not wrong, "\n".join(dict.fromkeys(wrong))


def test_a_module_that_is_nobody_elses_begins_with_an_underscore() -> None:
    """Commands and the local stack are entered by their command lines and are left out where nobody imports them."""
    entered = {package for _, _, package, _, _ in imports()}
    wrong = [
        f"{package}.{module}"
        for package in packages()
        if package in entered or package.split(".")[1] not in ("cli", "local_stack")
        for module in modules(package)
        if not module.startswith("_") and module not in (face(package)[1] or ())
    ]
    assert not wrong, "\n".join(wrong)


# --- light modules


LOOK = """
import importlib, os, sys
heavy = set(sys.argv[1].split(","))
for name in sys.argv[2:]:
    if os.fork() == 0:  # an interpreter that has imported nothing yet
        try:
            importlib.import_module(name)
        except Exception as error:
            print(name, "cannot be imported:", error, flush=True)
        else:
            loaded = sorted(heavy & {module.partition(".")[0] for module in sys.modules})
            print(name, *loaded, flush=True)
        os._exit(0)
    os.wait()
"""


def test_light_modules_import_nothing_heavy() -> None:
    """DAG files import these each time they are parsed, and every task and pod imports them when it starts."""
    light = [
        f"perennial.{package}.{module}"
        for package in LIGHT_PACKAGES
        for module in modules(f"perennial.{package}")
    ]
    light += [f"perennial.{module}" for module in LIGHT_MODULES]
    out = subprocess.run(
        [sys.executable, "-c", LOOK, ",".join(HEAVY), *light],
        env=os.environ | {"PYTHONPATH": str(LIBRARY.parent)},
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert len(out) == len(light)
    assert [line for line in out if len(line.split()) > 1] == []
