"""Text in HTML pages, also in pages that other libraries render without escaping."""

from __future__ import annotations

import json

from perennial.core import html

HOSTILE = "</script><b title=\"x\" id='y'>$z `w` &amp;"


def test_text_for_html_is_escaped() -> None:
    assert html.escape('<a href="x">&\'') == "&lt;a href=&quot;x&quot;&gt;&amp;&#x27;"
    assert html.escape(3) == "3"


def test_text_that_cannot_be_printed_is_dots_and_long_text_is_cut() -> None:
    assert html.printable("a\nb\x00c") == "a·b·c"
    assert html.printable("x" * 100, 60) == "x" * 59 + "…"
    assert html.printable("x" * 60, 60) == "x" * 60


def test_text_that_evidently_may_show_has_no_special_characters() -> None:
    shown = html.for_evidently(HOSTILE)
    assert not set("<>&\"'$`") & set(shown)
    assert html.restore({shown: [shown, 1, None]}) == {HOSTILE: [HOSTILE, 1, None]}
    assert len(html.for_evidently("<" * 100, 60)) == 60


def test_placeholders_become_javascript_escapes_in_scripts() -> None:
    shown = html.for_evidently(HOSTILE)
    for ensure_ascii in (True, False):  # a script may hold them as characters, or as JSON's escapes
        page = html.placeholders_to_script(json.dumps(shown, ensure_ascii=ensure_ascii))
        assert not set("<>&'$`") & set(page)
        assert json.loads(page) == "‹/script›‹b title=\"x\" id='y'›$z `w` ＆amp;"


def test_placeholders_become_html_references_in_pages() -> None:
    page = html.placeholders_to_html(html.protect(HOSTILE))
    assert page == "&lt;/script&gt;&lt;b title=&quot;x&quot; id=&#x27;y&#x27;&gt;&#36;z &#96;w&#96; &amp;amp;"


def test_a_placeholder_in_the_text_itself_does_not_become_markup() -> None:
    placeholder = html.protect("<")
    assert html.placeholders_to_html(html.protect(placeholder)) == "\ufffd"
    assert html.restore(html.for_evidently(placeholder)) == "·"
