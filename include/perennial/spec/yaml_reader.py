"""Reads YAML into typed models; a problem is told with file, line, key, value received and what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from perennial.core.errors import SpecError
from perennial.core.settings import ROOT

MAX_BYTES = 262_144


MAX_DEPTH = 20


_Parsed = TypeVar("_Parsed", bound=BaseModel)


_Lines = dict[tuple[str, ...], int]


#: By how much a token leads into or out of brackets, or the blocks that do without them.
_DEEPER = {
    yaml.FlowSequenceStartToken: 1,
    yaml.FlowMappingStartToken: 1,
    yaml.BlockMappingStartToken: 1,
    yaml.BlockSequenceStartToken: 1,
    yaml.FlowSequenceEndToken: -1,
    yaml.FlowMappingEndToken: -1,
    yaml.BlockEndToken: -1,
}


_READ = "see the model folder's README.md, or run `perennial check`"


class Yaml12Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML 1.2's idea of a boolean: ``on``, ``yes`` and ``no`` are words (``retraining.on`` is a key of the spec).

    Dates stay text until their key is known, so that a wrong one is told with it.
    With libyaml where it is there: it is eight times faster, and DAG files load every spec.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] not in ("bool", "timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def line(path: Path, *key: str) -> str:
    """``file:line`` of a key of a file that `load_model` read, for problems found later on."""
    lines: _Lines = {}
    node = Yaml12Loader(_text(path, path.parent.name)).get_single_node()
    for _ in _walk(node, (), lines, set()):
        pass
    near = next((key[:i] for i in range(len(key), -1, -1) if key[:i] in lines), ())
    return f"{show(path)}:{lines.get(near, 1)}"


def show(path: Path) -> str:
    """A path as messages show it: below the checkout where it lies there."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _text(path: Path, model: str | None) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(
                f"{show(path)} has more than {MAX_BYTES} bytes", "split or shorten it", model=model
            )
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise SpecError(
            f"{show(path)} is missing",
            "a model folder holds model.yaml, features.sql and expectations.json",
            model=model,
        ) from None
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{show(path)} is not UTF-8 text: {error.reason}", "save it as UTF-8", model=model
        ) from None
    except OSError as error:
        raise SpecError(
            f"{show(path)} cannot be read: {error.strerror}", "check its permissions", model=model
        ) from None


def parse(path: Path, kind: type[_Parsed], model: str | None) -> _Parsed:
    """Read a YAML file as ``kind``.

    Args:
        model: the model that errors name.

    Raises:
        SpecError: one line a problem.
    """
    shown = show(path)
    text = _text(path, model)
    lines: _Lines = {}
    try:
        _refuse_depth(text)
        loader = Yaml12Loader(text)
        node = loader.get_single_node()
        problems = list(_walk(node, (), lines, set())) if node else ["the file is empty"]
        values = loader.construct_document(node) if not problems else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise SpecError(
            f"{shown}:{mark.line + 1 if mark else 1}: {error.problem}", _READ, model=model
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError(f"{shown}: {error}", _READ, model=model) from None
    if not problems:
        try:
            return kind.model_validate(values)
        except ValidationError as error:
            problems = [_problem(e, lines, kind) for e in error.errors(include_url=False)]
    raise SpecError(
        "\n".join(f"{shown}:{p}" if p[0].isdigit() else f"{shown}: {p}" for p in problems), _READ, model=model
    )


def _refuse_depth(text: str) -> None:
    """Refuse brackets within brackets without end, which a recursive reader does not survive.

    Raises:
        ValueError: deeper than any spec is.
    """
    depth = 0
    for token in yaml.scan(text, Loader=Yaml12Loader):
        depth += _DEEPER.get(type(token), 0)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _walk(node: yaml.Node, path: tuple[str, ...], lines: _Lines, seen_nodes: set[int]) -> Iterator[str]:
    """Note the line of every key; yield keys that are written twice (YAML keeps the last, silently) and aliases.

    An alias is its anchor's node once more: followed, a few lines of aliases of aliases would never end.
    """
    lines[path] = node.start_mark.line + 1
    if id(node) in seen_nodes:
        yield f"{lines[path]}: {'.'.join(path)} is a YAML alias (*name), which is not supported: write the value out"
        return
    seen_nodes.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                yield f"{key.start_mark.line + 1}: {'.'.join((*path, name))} is given twice"
            seen.add(name)
            yield from _walk(value, (*path, name), lines, seen_nodes)
            lines[(*path, name)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _walk(value, (*path, str(i)), lines, seen_nodes)


def _problem(error: Any, lines: _Lines, kind: type[BaseModel]) -> str:
    where = tuple(str(p) for p in error["loc"] if p != "[key]")
    line = next((lines[where[:i]] for i in range(len(where), -1, -1) if where[:i] in lines), 1)
    key = ".".join(where)
    received = repr(error.get("input"))
    received = received if len(received) <= 80 else received[:77] + "..."
    if error["type"] == "extra_forbidden":
        known = _keys(kind, where[:-1])
        close = difflib.get_close_matches(where[-1], known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(known)}"
        return f"{line}: {key}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{line}: {key}: is missing, and must be given"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("model_type", "model_attributes_type"):
        message = f"must be a section with the keys {', '.join(_keys(kind, where))}"
    if error["type"] == "value_error":
        line = _named_line(message, where, lines) or line
        plain = isinstance(error.get("input"), str | int | float) and received not in message
    return f"{line}: {key + ': ' if key else ''}{message}" + (
        f"; received {received}" if error["type"] != "value_error" or plain else ""
    )


def _named_line(message: str, where: tuple[str, ...], lines: _Lines) -> int | None:
    """The line of the key that a rule across keys speaks of in its first words."""
    for word in re.findall(r"[\w.]+", message)[:2]:
        if (inner := (*where, *word.rstrip(".").split("."))) in lines:
            return lines[inner]
    return None


def _keys(kind: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    """The keys that the section at ``path`` may hold."""
    inner: Any = kind
    for part in path:
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            inner = getattr(inner.model_fields.get(part), "annotation", None)
        else:  # an item of a list, or a value of a mapping
            inner = (get_args(inner) or (None,))[-1]
    return list(inner.model_fields) if isinstance(inner, type) and issubclass(inner, BaseModel) else []
