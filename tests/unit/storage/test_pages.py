"""Pages that cannot be drawn or stored: the log and a page say why, and nothing fails."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from perennial.core.errors import DataError
from perennial.storage import pages


def draw_badly() -> list[str]:
    json.loads("jane@example.org")
    return []


def test_a_page_that_cannot_be_drawn_says_why_and_quotes_no_value(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uris = [str(tmp_path / "p.json"), str(tmp_path / "p.html")]
    pages.write("profile <of> toy", uris, draw_badly)
    content, page = (Path(uri).read_text() for uri in uris)
    assert json.loads(content)["not_drawn"].startswith("JSONDecodeError in json/decoder.py:")
    assert "<h1>profile &lt;of&gt; toy</h1>" in page and "JSONDecodeError in json/decoder.py:" in page
    assert "profile <of> toy could not be drawn" in caplog.text
    assert "jane" not in content + page + caplog.text


def test_an_error_of_ours_is_quoted() -> None:
    def refuse() -> str:
        raise DataError("nothing was published", "publish it")

    assert pages.attempt("a profile", refuse) == (None, "nothing was published")


@pytest.mark.parametrize("error", [MemoryError(), RecursionError()])
def test_running_out_of_something_while_drawing_fails_nothing(error: Exception) -> None:
    def fail() -> str:
        raise error

    assert pages.attempt("a profile", fail)[0] is None


def test_a_page_that_cannot_be_stored_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "p.html" / "in the way").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        pages.write("profile", [str(tmp_path / "p.html")], lambda: ["<html></html>"])
    assert "p.html could not be stored" in caplog.text


def test_the_end_of_the_process_is_not_held_up() -> None:
    def end() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pages.attempt("a profile", end)
