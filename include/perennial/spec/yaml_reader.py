"""Read YAML files into typed models, with errors that name file, line, key and allowed values."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from perennial.core.errors import SpecError
from perennial.core.settings import ROOT
from perennial.spec import _renamed_keys

__all__ = ["Yaml12Loader", "display_path", "key_location", "parse_yaml", "read_text"]

MAX_BYTES = 262_144
MAX_DEPTH = 20
_Parsed = TypeVar("_Parsed", bound=BaseModel)
#: The line of each key, by its path.
_LineNumbers = dict[tuple[str, ...], int]
#: The change of nesting depth at a token: brackets, and blocks without brackets.
_DEPTH_CHANGE = {
    yaml.FlowSequenceStartToken: 1,
    yaml.FlowMappingStartToken: 1,
    yaml.BlockMappingStartToken: 1,
    yaml.BlockSequenceStartToken: 1,
    yaml.FlowSequenceEndToken: -1,
    yaml.FlowMappingEndToken: -1,
    yaml.BlockEndToken: -1,
}
#: Name and password of an address that was written into a spec by mistake.
_LOGIN = re.compile(r"//[^/@\s]*@")
_REMEDY = "see the README.md in the folder of models, or run `perennial check`"


class Yaml12Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Loader with YAML 1.2's booleans: ``on``, ``yes`` and ``no`` are text.

    Dates stay text until their key is known, so that the error about an invalid one can name the key.
    It uses libyaml if available, which is eight times faster: DAG files load every spec.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] not in ("bool", "timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF")
)


def key_location(path: Path, *key: str) -> str:
    """Locate a key, or the closest section above it, as ``file:line``, for errors after parsing."""
    lines: _LineNumbers = {}
    node = Yaml12Loader(read_text(path, path.parent.name)).get_single_node()
    for _ in _index_lines(node, (), lines, set()):
        pass
    return f"{display_path(path)}:{_closest_line(key, lines)}"


def display_path(path: Path) -> str:
    """A path as messages show it: relative to the checkout if it lies there."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def read_text(path: Path, model: str | None) -> str:
    """Read a text file of a model folder.

    Args:
        path: the file.
        model: the model that errors name.

    Raises:
        SpecError: the file is missing, unreadable, too large or not UTF-8.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(
                f"{display_path(path)} has more than {MAX_BYTES} bytes", "split or shorten it", model=model
            )
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise SpecError(
            f"{display_path(path)} is missing",
            "a model folder has the files model.yaml, features.sql and expectations.json",
            model=model,
        ) from None
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{display_path(path)} is not UTF-8 text: {error.reason}", "save it as UTF-8", model=model
        ) from None
    except OSError as error:
        raise SpecError(
            f"{display_path(path)} cannot be read: {error.strerror}", "check its permissions", model=model
        ) from None


def parse_yaml(path: Path, kind: type[_Parsed], model: str | None) -> _Parsed:
    """Read a YAML file as ``kind``.

    Args:
        path: the file.
        kind: the class of the result.
        model: the model that errors name.

    Raises:
        SpecError: the file cannot be read or is invalid; one line a problem.
    """
    location = display_path(path)
    text = read_text(path, model)
    lines: _LineNumbers = {}
    try:
        _check_depth(text)
        loader = Yaml12Loader(text)
        node = loader.get_single_node()
        problems = list(_index_lines(node, (), lines, set())) if node else ["the file is empty"]
        values = loader.construct_document(node) if not problems else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise SpecError(
            f"{location}:{mark.line + 1 if mark else 1}: {error.problem}", _REMEDY, model=model
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError(f"{location}: {error}", _REMEDY, model=model) from None
    if not problems:
        try:
            return kind.model_validate(values)
        except ValidationError as error:
            problems = [_describe(e, lines, kind) for e in error.errors(include_url=False)]
    raise SpecError(
        "\n".join(f"{location}:{p}" if p[0].isdigit() else f"{location}: {p}" for p in problems),
        _REMEDY,
        model=model,
    )


def _check_depth(text: str) -> None:
    """Refuse deeply nested YAML, which would exceed the recursion limit of the reader.

    Raises:
        ValueError: deeper than `MAX_DEPTH`.
    """
    depth = 0
    for token in yaml.scan(text, Loader=Yaml12Loader):
        depth += _DEPTH_CHANGE.get(type(token), 0)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _index_lines(
    node: yaml.Node, path: tuple[str, ...], lines: _LineNumbers, visited: set[int]
) -> Iterator[str]:
    """Record the line of every key; yield a problem for each duplicate key and each alias.

    YAML silently keeps the last of duplicate keys. An alias repeats the node of its anchor, so that a few lines of
    nested aliases could expand without limit.
    """
    lines[path] = node.start_mark.line + 1
    if id(node) in visited:
        yield f"{lines[path]}: {'.'.join(path)} is a YAML alias (*name), which is not supported: write the value out"
        return
    visited.add(id(node))
    if isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in names:
                yield f"{key.start_mark.line + 1}: {'.'.join((*path, name))} is given twice"
            names.add(name)
            yield from _index_lines(value, (*path, name), lines, visited)
            lines[(*path, name)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _index_lines(value, (*path, str(i)), lines, visited)


def _describe(error: ErrorDetails, lines: _LineNumbers, kind: type[BaseModel]) -> str:
    """A validation error as ``line: key: message``."""
    path = tuple(str(p) for p in error["loc"] if p != "[key]")
    line, key = _closest_line(path, lines), ".".join(path)
    received = _LOGIN.sub("//***@", repr(error.get("input")))
    received = received if len(received) <= 80 else received[:77] + "..."
    if error["type"] == "extra_forbidden":
        return f"{line}: {key}{_unknown_key(path, kind)}{_renamed_keys.unit_hint(path, error.get('input'))}"
    if error["type"] == "missing":
        return f"{line}: {key}: is missing, and must be given"
    if error["type"] == "literal_error" and (name := _renamed_keys.new_value(path, error.get("input"))):
        return f"{line}: {key}: {received} is now called {name!r}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("model_type", "model_attributes_type"):
        message = f"must be a section with the keys {', '.join(_allowed_keys(kind, path))}"
    plain = True
    if error["type"] == "value_error":
        line = _named_line(message, path, lines) or line
        plain = isinstance(error.get("input"), str | int | float) and received not in message
    return f"{line}: {key + ': ' if key else ''}{message}" + (f"; received {received}" if plain else "")


def _unknown_key(path: tuple[str, ...], kind: type[BaseModel]) -> str:
    if name := _renamed_keys.new_key(path):
        return f" is now called {name}"
    known = _allowed_keys(kind, path[:-1])
    close = difflib.get_close_matches(path[-1], known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(known)}"
    return f": unknown key; {hint}"


def _closest_line(path: tuple[str, ...], lines: _LineNumbers) -> int:
    """The line of a key, or of the closest section above it."""
    return next((lines[path[:i]] for i in range(len(path), -1, -1) if path[:i] in lines), 1)


def _named_line(message: str, path: tuple[str, ...], lines: _LineNumbers) -> int | None:
    """The line of the key that the message of a rule across keys begins with."""
    for word in re.findall(r"[\w.]+", message)[:2]:
        if (inner := (*path, *word.rstrip(".").split("."))) in lines:
            return lines[inner]
    return None


def _allowed_keys(kind: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    """The keys that the section at ``path`` may hold."""
    inner: Any = kind
    for part in path:
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            inner = getattr(inner.model_fields.get(part), "annotation", None)
            inner = _section_of(inner)
        else:  # an item of a list, or a value of a mapping
            inner = (get_args(inner) or (None,))[-1]
    return list(inner.model_fields) if isinstance(inner, type) and issubclass(inner, BaseModel) else []


def _section_of(annotation: Any) -> Any:
    """The section that a key may have as its value instead of a text or nothing; otherwise the annotation itself."""
    while get_origin(annotation) in (Union, types.UnionType, Annotated):
        annotation = next((p for p in get_args(annotation) if p not in (str, type(None))), None)
    return annotation
