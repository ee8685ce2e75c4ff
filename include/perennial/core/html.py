"""Text in HTML pages: our own, and those that Great Expectations and Evidently render without escaping.

What such a library renders is protected first: each special character is replaced by a placeholder from Unicode's
private use area, which passes through templates, JSON and scripts unchanged. In the finished page, a placeholder
becomes an HTML reference or a JavaScript escape, as its context needs; in the results, its own character again.

In scripts, characters of markup become lookalikes: Plotly renders some tags in its labels, links among them.
"""

from __future__ import annotations

import html
from typing import Any

#: Characters with a meaning in HTML, in JavaScript's strings or in Great Expectations' string templates.
_SPECIAL = "<>&\"'$`"
# not from U+E000 on: libraries name the borders of the private use area in their scripts
_PLACEHOLDERS = {c: chr(0xE100 + i) for i, c in enumerate(_SPECIAL)}
# a placeholder that the text itself contains would become markup: it is replaced by Unicode's replacement character
_PROTECTION = str.maketrans(_PLACEHOLDERS | dict.fromkeys(_PLACEHOLDERS.values(), "\ufffd"))
_LOOKALIKES = {"<": "‹", ">": "›", "&": "＆"}
_AS_TEXT = str.maketrans({p: c for c, p in _PLACEHOLDERS.items()})
_AS_HTML = str.maketrans(
    {p: html.escape(c) if c in "<>&\"'" else f"&#{ord(c)};" for c, p in _PLACEHOLDERS.items()}
)


def escape(text: object) -> str:
    """Text for HTML, in elements and in quoted attributes."""
    return html.escape(str(text))


def printable(text: object, limit: int | None = None) -> str:
    """Text with a dot for each character that cannot be printed, cut to ``limit`` characters."""
    shown = str(text)
    if limit is not None and len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return shown if shown.isprintable() else "".join(c if c.isprintable() else "·" for c in shown)


def for_evidently(text: object, limit: int | None = None) -> str:
    """Text that Evidently may show: it writes names and categories into a script unescaped.

    The page goes through `placeholders_to_script`, the results through `restore`.
    """
    return printable(text, limit).translate(_PROTECTION)


def protect(value: Any) -> Any:
    """JSON content with placeholders for the special characters of all its texts, keys included."""
    return _translate(value, _PROTECTION)


def restore(value: Any) -> Any:
    """JSON content with the characters that its placeholders stand for."""
    return _translate(value, _AS_TEXT)


def placeholders_to_html(page: str) -> str:
    """A page with HTML's references for its placeholders."""
    return page.translate(_AS_HTML)


def placeholders_to_script(page: str) -> str:
    """A page with JavaScript's escapes for the placeholders in its scripts, also for JSON's escapes of them.

    ``<``, ``>`` and ``&`` are shown as characters that look like them.
    """
    for char, placeholder in _PLACEHOLDERS.items():
        escaped = f"\\u{ord(_LOOKALIKES.get(char, char)):04x}"
        page = page.replace(placeholder, escaped).replace(f"\\u{ord(placeholder):04x}", escaped)
    return page


def _translate(value: Any, table: dict[int, str]) -> Any:
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, dict):
        return {_translate(k, table): _translate(v, table) for k, v in value.items()}
    return [_translate(v, table) for v in value] if isinstance(value, list | tuple) else value
