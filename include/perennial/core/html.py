"""Safe text in HTML pages, also in those of Great Expectations and Evidently, which do not escape.

Text is protected before such a library renders it: each special character is replaced by a placeholder from Unicode's
private use area, which passes through templates, JSON and scripts unchanged. In the finished page, a placeholder is
replaced by an HTML reference or a JavaScript escape, depending on its context; in the results, by the character itself.

In scripts, markup characters are replaced by similar-looking ones, because Plotly renders some tags (such as links) in
its labels.
"""

from __future__ import annotations

import html
from typing import Any

#: Characters with a meaning in HTML, in JavaScript's strings or in Great Expectations' string templates.
_SPECIAL = "<>&\"'$`"
# Not from U+E000 on: scripts of the libraries contain the first and last character of the private use area.
_PLACEHOLDERS = {c: chr(0xE100 + i) for i, c in enumerate(_SPECIAL)}
# A placeholder in the text itself would become markup, so it is replaced by Unicode's replacement character.
_PROTECTION = str.maketrans(_PLACEHOLDERS | dict.fromkeys(_PLACEHOLDERS.values(), "\ufffd"))
_LOOKALIKES = {"<": "‹", ">": "›", "&": "＆"}
_AS_TEXT = str.maketrans({p: c for c, p in _PLACEHOLDERS.items()})
_AS_HTML = str.maketrans(
    {p: html.escape(c) if c in "<>&\"'" else f"&#{ord(c)};" for c, p in _PLACEHOLDERS.items()}
)


def escape(text: object) -> str:
    """Escape text for HTML elements and quoted attributes."""
    return html.escape(str(text))


def printable(text: object, limit: int | None = None) -> str:
    """Text with a dot for each character that cannot be printed, cut to ``limit`` characters."""
    shown = str(text)
    if limit is not None and len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return shown if shown.isprintable() else "".join(c if c.isprintable() else "·" for c in shown)


def for_evidently(text: object, limit: int | None = None) -> str:
    """Protect text for Evidently, which writes names and categories into a script unescaped.

    Afterwards, pass the page through `placeholders_to_script` and the results through `restore`.
    """
    return printable(text, limit).translate(_PROTECTION)


def protect(value: Any) -> Any:
    """Replace the special characters of all texts in JSON content, keys included, by placeholders."""
    return _translate(value, _PROTECTION)


def restore(value: Any) -> Any:
    """Replace the placeholders in JSON content by the characters that they stand for."""
    return _translate(value, _AS_TEXT)


def placeholders_to_html(page: str) -> str:
    """Replace the placeholders in a page by HTML references."""
    return page.translate(_AS_HTML)


def placeholders_to_script(page: str) -> str:
    """Replace the placeholders in a page's scripts, and their JSON escapes, by JavaScript escapes.

    ``<``, ``>`` and ``&`` are replaced by similar-looking characters.
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
