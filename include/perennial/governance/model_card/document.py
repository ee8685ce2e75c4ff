"""Documents of headings, sentences, lists and tables, rendered as Markdown and as HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from perennial.charts import page
from perennial.charts.markup import Markup, element, join, table, text
from perennial.core.html import printable

#: Characters with a meaning anywhere in Markdown, or in HTML, which Markdown lets through.
_SPECIAL = re.compile(r"([\\`*\[\]<>|~&$])|(?<!\w)(_)|(_)(?!\w)")
#: What begins or ends a block of code, and a heading.
_FENCE, _HEADING = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$"), re.compile(r"^(#{1,5}) ")
#: What begins a list, a heading or a line.
_LEADING = re.compile(r"^(\d*)([-+#.)=]+)(?=\s|$)")


@dataclass(frozen=True)
class Paragraph:
    """A paragraph.

    Attributes:
        text: of it.
    """

    text: str


@dataclass(frozen=True)
class Gap:
    """Something that is not known.

    Attributes:
        what: is not known; empty where the heading says it.
        remedy: what to add, and where, so that the next version has it.
    """

    what: str
    remedy: str

    @property
    def text(self) -> str:
        """Both in a sentence."""
        return f"{self.what}: not known: {self.remedy}." if self.what else f"Not known: {self.remedy}."


@dataclass(frozen=True)
class Bullets:
    """A list.

    Attributes:
        items: its items.
    """

    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names with values, without those that are empty.

    Attributes:
        pairs: name and value.
    """

    pairs: Sequence[tuple[str, object]]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        heads: of the columns.
        rows: cells of each row, the first of which is its heading.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Authored:
    """Markdown that people wrote, such as a README.

    Attributes:
        text: of it.
    """

    text: str


Block = Paragraph | Gap | Bullets | Facts | Table | Authored


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it.

    Attributes:
        heading: of the section.
        blocks: its content.
        parts: sections within it.
    """

    heading: str
    blocks: Sequence[Block] = ()
    parts: Sequence[Section] = field(default=())


def to_markdown(title: str, sections: Iterable[Section]) -> str:
    """A document as Markdown."""
    lines = [f"# {_plain(title)}", ""]
    for section in sections:
        lines += _section(section, 2)
    return "\n".join(lines).rstrip("\n") + "\n"


def to_html(title: str, sections: Iterable[Section], links: Markup = Markup("")) -> str:  # noqa: B008 - immutable
    """A document as a page of its own, without scripts and without anything from elsewhere."""
    return page.document(title, element("h1", text(title)), links, html_sections(sections))


def html_sections(sections: Iterable[Section]) -> Markup:
    """The sections of a document, for a page."""
    return join(_html_section(section, 2) for section in sections)


def gaps(sections: Iterable[Section]) -> list[Gap]:
    """What is not known, in order."""
    return [
        gap
        for section in sections
        for gap in (*(b for b in section.blocks if isinstance(b, Gap)), *gaps(section.parts))
    ]


def _plain(value: object) -> str:
    """Text of one line, in which nothing has a meaning for Markdown."""
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", printable(" ".join(str(value).split())))


def _line(value: object) -> str:
    """As `_plain`, at the beginning of a line."""
    return _LEADING.sub(r"\1\\\2", _plain(value))


def _section(section: Section, level: int) -> list[str]:
    lines = [f"{'#' * level} {_plain(section.heading)}", ""]
    for block in section.blocks:
        lines += [*_markdown(block, level), ""]
    for part in section.parts:
        lines += _section(part, level + 1)
    return lines


def _markdown(block: Block, level: int) -> list[str]:
    if isinstance(block, Gap):
        return [f"> **Gap.** {_plain(block.text)}"]
    if isinstance(block, Paragraph):
        return [_line(block.text)]
    if isinstance(block, Bullets):
        return [f"- {_line(item)}" for item in block.items]
    if isinstance(block, Facts):
        return [
            f"- **{_plain(name)}:** {_plain(value)}" for name, value in block.pairs if value not in (None, "")
        ]
    if isinstance(block, Table):
        cells = [block.heads, *block.rows]
        lines = [f"| {' | '.join(_plain(cell) for cell in row)} |" for row in cells]
        return [lines[0], f"|{' --- |' * len(block.heads)}", *lines[1:]]
    return _authored(block.text, level)


def _authored(markdown: str, level: int) -> list[str]:
    """Lines of a README, whose headings are those of a part of this document, and which end what they begin."""
    lines: list[str] = []
    fence, comment = "", False
    for line in markdown.strip().splitlines():
        if fence:
            closing = _FENCE.match(line)
            ends = closing and closing[1].startswith(fence) and not closing[2].strip()
            lines, fence = [*lines, line], "" if ends else fence
            continue
        if opening := _FENCE.match(line):
            fence = "" if comment or (opening[1][0] == "`" and "`" in opening[2]) else opening[1]
        elif not comment:
            line = _HEADING.sub(lambda m: f"{'#' * min(6, len(m[1]) + level)} ", line)
        comment = line.rfind("<!--") > line.rfind("-->") or (comment and "-->" not in line)
        lines.append(line)
    return [*lines, *([fence] if fence else []), *(["-->"] if comment else [])]


def _html_section(section: Section, level: int) -> Markup:
    content = [element(f"h{min(level, 6)}", text(section.heading)), *map(_html, section.blocks)]
    content += [_html_section(part, level + 1) for part in section.parts]
    return element("section", *content)


def _html(block: Block) -> Markup:
    if isinstance(block, Gap):
        return element("p", element("strong", text("Gap. ")), text(block.text), class_="gap")
    if isinstance(block, Paragraph):
        return element("p", text(block.text))
    if isinstance(block, Bullets):
        return element("ul", *(element("li", text(item)) for item in block.items))
    if isinstance(block, Facts):
        return page.facts(block.pairs)
    if isinstance(block, Table):
        return element("div", table(block.heads, block.rows), class_="wide")
    lines = join(Markup(f"{text(line)}\n") for line in block.text.strip().splitlines())
    return element("pre", lines, class_="prose")
