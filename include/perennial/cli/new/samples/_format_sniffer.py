"""How the text files of a sample are written: encoding, delimiter, quotes, and the lines before the header.

DuckDB's sniffer is asked first. Its answer is used if every line of the beginning has as many cells as the header.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from perennial.cli.new.samples._header_sniffer import (
    is_footer,
    is_header,
    may_be_footer,
    rows_of_units,
    total_lines,
)  # fmt: skip
from perennial.cli.new.samples.choices import ReadingChoices, Undecided
from perennial.core import file_formats
from perennial.core.errors import DataError
from perennial.core.sql import same_identifier, text_literal
from perennial.feeds import compressed_files, excel_files, text_files
from perennial.feeds.text_casts import TextFormat

__all__ = ["sniff_dialect", "unsupported_remedy"]

#: Bytes, and records, of the beginning of a file from which its dialect is inferred.
HEAD_BYTES, HEAD_RECORDS = 4 << 20, 2000
#: Bytes that are not ASCII from which an encoding is guessed.
GUESS_BYTES = 1 << 16
#: Most lines before the header.
MAX_SKIPPED = 30
_DELIMITERS = {",": ",", ";": ";", "\t": "tab", "|": "|"}
#: Others, if none of these fits; more of them occur by chance.
_OTHERS = {"^": "^", "~": "~", ":": ":", " ": "space", "  ": "whitespace"}
#: What lines begin with that are comments.
_COMMENTS = ("#", "%", "//", "!")
#: Most lines at the end that are no rows.
MAX_FOOTER = 5


@dataclass(frozen=True)
class _Dialect:
    """A way to read lines, and what came of it.

    Attributes:
        text_format: delimiter, quotes, skipped lines, extra cell.
        cells: number of cells of each record.
    """

    text_format: TextFormat
    cells: int


def sniff_dialect(
    con: duckdb.DuckDBPyConnection, paths: Sequence[Path], folder: Path, choices: ReadingChoices
) -> tuple[TextFormat, list[str], list[Undecided]]:
    """Infer how text files, or Excel sheets, are divided into lines and cells.

    Args:
        con: DuckDB connection.
        paths: the files, all of one format.
        folder: where temporary files go.
        choices: what was chosen where the text leaves it open.

    Returns:
        The format, with the defaults of everything about cells; remarks about what may be wrong; what is undecided.

    Raises:
        DataError: a file is damaged, or of a format that is not supported.
    """
    if file_formats.ending(paths[0].name) == file_formats.EXCEL:
        text_format, remarks = _sheet(paths[0])
        return replace(text_format, header=choices.header != "no"), remarks, []
    encoding, remarks = _encoding(paths)
    head = _head(paths[0], encoding)
    if not head.strip():
        return TextFormat(encoding=encoding), remarks, []
    _refuse_other_layouts(paths[0], head)
    sample = folder / "head.csv"
    sample.write_text(head, "utf-8", newline="")
    # A line end within quotes does not change the number of cells.
    text = re.sub(r"\r+\n", "\n", head)
    text = text.replace("\r", "\n" if text.count("\r") > text.count("\n") else "")
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    text_format = replace(
        _layout(lines, _duckdb_delimiter(con, sample)) or _of_first_line(lines), encoding=encoding
    )
    sample.unlink()
    return _with_header(lines, text_format, choices.header, remarks)


def _refuse_other_layouts(path: Path, head: str) -> None:
    """Refuse text that is no table of cells with a sign between them, by the name of what it is.

    Raises:
        DataError: it is ARFF, libsvm, JSON, or has columns of a fixed width with spaces in their texts.
    """
    lines = [line for line in head.splitlines()[:HEAD_RECORDS] if line.strip()]
    if re.search(r"(?im)^@relation\b", head[:100_000]) and re.search(r"(?im)^@attribute\b", head[:100_000]):
        raise DataError(f"{path} is an ARFF file", unsupported_remedy(".arff"))
    if all(re.fullmatch(r"[-+.\de,]+(\s+\d+:[-+.\de]+)+\s*", line, re.IGNORECASE) for line in lines[:20]):
        raise DataError(
            f"{path} is a libsvm file, whose rows name their columns",
            "convert it, for example with sklearn.datasets.load_svmlight_file and pandas.DataFrame(...).to_csv(...)",
        )
    if re.match(r"\s*(\[\s*)?\{\s*\"", head):
        raise DataError(f"{path} is a JSON file", unsupported_remedy(".json"))
    apart = [re.split(r"\s{2,}", line.strip()) for line in lines]
    even = len({len(line.rstrip()) for line in lines}) <= 3 and len({len(cells) for cells in apart}) == 1
    words = {len(line.split()) for line in lines}
    if (
        len(lines) > 2
        and even
        and len(apart[0]) > 1
        and len(words) > 1
        and not re.search(r"[,;|\t]", head[:100_000])
    ):
        raise DataError(
            f"{path} has columns of a fixed width, with spaces in their texts",
            "convert it, for example with pandas.read_fwf(FILE).to_csv(...), and let the feed deliver that",
        )


def unsupported_remedy(ending: str) -> str:
    """What to do about a file of a format that is not supported, by the ending of its name."""
    python = {
        ".arff": "pandas.DataFrame(scipy.io.arff.loadarff(FILE)[0]).to_csv(...)",
        ".xls": "pandas.read_excel(FILE).to_csv(...)", ".ods": "pandas.read_excel(FILE).to_csv(...)",
        ".json": "pandas.read_json(FILE).to_csv(...)", ".jsonl": "pandas.read_json(FILE, lines=True).to_csv(...)",
        ".feather": "pandas.read_feather(FILE).to_parquet(...)", ".dta": "pandas.read_stata(FILE).to_parquet(...)",
        ".sas7bdat": "pandas.read_sas(FILE).to_parquet(...)", ".sav": "pandas.read_spss(FILE).to_parquet(...)",
        ".pkl": "pandas.read_pickle(FILE).to_parquet(...)",
    }  # fmt: skip
    if ending in (".db", ".sqlite", ".sqlite3"):
        return "give its rows as a query: --connection NAME --table TABLE, see the page about databases"
    if ending in python:
        return (
            f"convert it to CSV or parquet, for example with {python[ending]}, and let the feed deliver that"
        )
    return "convert it to CSV or parquet, or give another sample"


def _layout(lines: list[str], preferred: str | None) -> TextFormat | None:
    """The format in which every record has as many cells as the header; None if there is none with several cells.

    Most files have neither comments nor a footer, which are left out only if nothing fits otherwise.
    """
    sign = next((c for c in _COMMENTS if lines[_first_filled(lines)].lstrip().startswith(c)), "none")
    for comment in dict.fromkeys((sign, "none")):
        rows = [
            i for i, line in enumerate(lines)
            if line.strip() and (comment == "none" or not line.lstrip().startswith(comment))
        ]  # fmt: skip
        named = comment != "none" and rows and rows[0] and _names_the_rows(lines, rows, preferred)
        if not rows or named:
            continue
        for footer in range(_most_footer_lines(lines, rows) + 1):
            dialect = _dialect([lines[i] for i in rows[: len(rows) - footer]], preferred)
            left_out = (
                (_record(lines[i], dialect.text_format) for i in rows[len(rows) - footer :])
                if dialect
                else ()
            )
            if dialect and all(map(is_footer, left_out)):
                # The lines that are skipped are counted with the comments and empty ones among them.
                is_first = comment != "none" and not dialect.text_format.skip_lines
                skipped = 0 if is_first else rows[dialect.text_format.skip_lines]
                return replace(dialect.text_format, comment=comment, footer_lines=footer, skip_lines=skipped)
    return None


def _most_footer_lines(lines: list[str], rows: list[int]) -> int:
    count = 0
    while count < min(MAX_FOOTER, len(rows) - 2) and may_be_footer(lines[rows[-1 - count]], lines[rows[1]]):
        count += 1
    return count


def _first_filled(lines: list[str]) -> int:
    return next(i for i, line in enumerate(lines) if line.strip())


def _names_the_rows(lines: list[str], rows: list[int], preferred: str | None) -> bool:
    """Whether the last comment before the rows is their header: it has as many cells as they have."""
    dialect = _dialect(lines[rows[0] - 1 : rows[0] + MAX_SKIPPED], preferred)
    if dialect is None or dialect.text_format.skip_lines or dialect.text_format.extra_cell != "none":
        return False
    # A sign apart from the words begins a sentence, or names one column more than there are.
    return len(_record(lines[rows[0] - 1], dialect.text_format)[0].strip()) > 2


def _of_first_line(lines: list[str]) -> TextFormat:
    """The format of the first line, so that the error about another line names it."""
    first = lines[_first_filled(lines)]
    delimiter = max(_DELIMITERS, key=first.count)
    return TextFormat(delimiter=_DELIMITERS[delimiter]) if first.count(delimiter) else TextFormat()


def _with_header(
    lines: list[str], text_format: TextFormat, chosen: str | None, remarks: list[str]
) -> tuple[TextFormat, list[str], list[Undecided]]:
    """A format that says whether there is a header, whose names may repeat, and totals; with remarks."""
    records = [cells for _, cells in text_files.records(lines, text_format)]
    if records and text_format.extra_cell == "none" and (units := rows_of_units(records)):
        text_format = replace(text_format, skip_after_header=units)
        remarks.append(
            f"{units} lines after the header are no rows, and are left out (data.format.skip_after_header)"
        )
        records = [records[0], *records[1 + units :]]
    even = [cells for cells in records[1:HEAD_RECORDS] if len(cells) == len(records[0])]
    undecided: list[Undecided] = []
    header = chosen != "no"
    if chosen is None and records and len(records[0]) > 1 and text_format.extra_cell == "none":
        header = is_header([records[0], *even])
        if not header:
            count = len(records[0])
            previews = {"no": f"columns are called column_1 to column_{count}", "yes": "it is no row"}
            undecided.append(
                Undecided("header", "the first line has no names, but values as other rows", "no", previews)
            )
    if not header:
        text_format = replace(text_format, header=False)
    elif records and same_identifier([name for name in records[0] if name]):
        remarks.append("several columns have one name: they are numbered from the second on, as in name_2")
        text_format = replace(text_format, duplicate_names="number")
    footer = max(text_format.footer_lines, min(MAX_FOOTER, total_lines(records)))
    text_format = replace(text_format, footer_lines=footer)
    if text_format.footer_lines:
        remarks.append(
            f"the last lines of the file are no rows, and are left out: {text_format.footer_lines} "
            "(data.format.footer_lines)"
        )
    return text_format, remarks, undecided


def _sheet(path: Path) -> tuple[TextFormat, list[str]]:
    """The first sheet of a workbook that has rows."""
    sheets = excel_files.filled_sheets(path)
    if not sheets:
        raise DataError(f"{path} is not an Excel workbook with rows", "give another sample")
    name, skipped = sheets[0]
    remarks = []
    if len(sheets) > 1:
        others = ", ".join(repr(other) for other, _ in sheets[1:])
        remarks.append(
            f"the workbook has several sheets: {name!r} is read, and not {others} (data.format.sheet)"
        )
    return TextFormat(sheet=name, skip_lines=skipped), remarks


def _blocks(path: Path) -> Iterator[bytes]:
    """The content of a text file, without its compression."""
    method = file_formats.compression(path.name)
    try:
        with path.open("rb") as file:
            if method:
                yield from compressed_files.blocks(file, method)
            else:
                while block := file.read(text_files.BLOCK_BYTES):
                    yield block
    except (compressed_files.DamagedFileError, OSError, EOFError) as error:
        raise DataError(f"{path} is not readable text: {error}", "give another sample") from error


def _head(path: Path, encoding: str) -> str:
    """The complete records at the beginning of a file."""
    head = b""
    for block in _blocks(path):
        head += block
        if len(head) >= HEAD_BYTES:
            break
    decoder = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)("replace")
    text = decoder.decode(head[:HEAD_BYTES], final=len(head) < HEAD_BYTES)
    return text if len(head) < HEAD_BYTES else text[: max(text.rfind("\n"), text.rfind("\r")) + 1]


def _encoding(paths: Sequence[Path]) -> tuple[str, list[str]]:
    """The encoding of files, and a remark if it is a guess."""
    valid, others = codecs.getincrementaldecoder("utf-8"), b""
    is_utf8 = True
    for path in paths:
        start, decoder = b"", valid()
        for block in _blocks(path):
            start = start or block
            try:
                if is_utf8:
                    decoder.decode(block)
            except UnicodeDecodeError:
                is_utf8 = False
            if not is_utf8 and len(others) < GUESS_BYTES:
                others += b"\n".join(re.findall(rb"[^\n]*[\x80-\xff][^\n]*", block))
        for mark, encoding in text_files.MARKS:
            if start.startswith(mark):
                return encoding, []
        zeros = [start[i::2].count(0) / max(1, len(start[i::2])) for i in (0, 1)]
        if max(zeros) > 0.3 and min(zeros) < 0.1:
            return ("utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"), []
        if is_utf8:
            try:
                decoder.decode(b"", final=True)
            except UnicodeDecodeError:
                is_utf8, others = False, start
    if is_utf8:
        return "utf-8", []
    encoding = next(e for e in (*_guesses(others[:GUESS_BYTES]), "latin-1") if _decodes(paths, e))
    return encoding, [
        f"the files are not UTF-8 and do not say what they are: they are read as {encoding}; if letters with accents "
        "are wrong, correct data.format.encoding"
    ]


def _decodes(paths: Sequence[Path], encoding: str) -> bool:
    """Whether all files are in an encoding."""
    try:
        for path in paths:
            decoder = codecs.getincrementaldecoder(encoding)()
            for block in _blocks(path):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _guesses(text: bytes) -> list[str]:
    """Encodings in which text can be, the likeliest first.

    In western languages, letters beyond ASCII stand alone among others; in Cyrillic and Chinese text they come in rows.
    """
    runs = re.findall(rb"[\x80-\xff]+", text)
    beyond = sum(len(run) for run in runs)
    if beyond and sum(len(run) for run in runs if len(run) > 1) / beyond > 0.6:
        even = sum(len(run) % 2 == 0 for run in runs) / len(runs)
        lower, upper = (len(re.findall(pattern, text)) for pattern in (rb"[\xe0-\xff]", rb"[\xc0-\xdf]"))
        cyrillic = ["cp1251", "koi8-r"] if lower >= upper else ["koi8-r", "cp1251"]
        return ["gb18030", "shift_jis", *cyrillic] if even > 0.95 else [*cyrillic, "gb18030"]
    inner = re.findall(rb"(?<=[A-Za-z])[\x80-\xff](?=[a-z])", text) or re.findall(rb"[\x80-\xff]", text)
    letters = b"".join(inner)
    count = len(letters) or 1
    if sum(letters.count(b) for b in b"\x81\x82\x84\x94\x8e\x99\x9a") / count > 0.5:
        return ["cp850", "cp437"]
    if sum(letters.count(b) for b in b"\xb3\xb9\xbf\x9c\x9f\xbe\x9e") / count > 0.15:
        return ["cp1250", "cp1252"]
    return ["cp1252"]


def _duckdb_delimiter(con: duckdb.DuckDBPyConnection, path: Path) -> str | None:
    """The delimiter that DuckDB's sniffer finds; None if it finds none."""
    try:
        rows = con.execute(
            f"SELECT Delimiter FROM sniff_csv({text_literal(str(path))}, sample_size=20480, all_varchar=true)"
        ).fetchall()
    except duckdb.Error:
        return None
    return str(rows[0][0]) if rows else None


def _dialect(lines: list[str], preferred: str | None) -> _Dialect | None:
    """The dialect in which every record has as many cells as the header; None if there is none with several cells."""
    ways = (('"', "doubled"), ('"', "backslash"), ("'", "doubled"), ("'", "backslash"), ("none", "doubled"))
    # Most files have no title: lines are left out only if nothing fits otherwise.
    for delimiters, skipped in ((_DELIMITERS, 1), (_DELIMITERS, MAX_SKIPPED), (_OTHERS, MAX_SKIPPED)):
        fitting = [
            (
                dialect.text_format.extra_cell != "none", dialect.text_format.skip_lines, i, delimiter != preferred,
                -dialect.cells, dialect,
            )
            for i, (quote, escape) in enumerate(ways)
            for delimiter, name in delimiters.items()
            if (dialect := _fit(lines, TextFormat(delimiter=name, quote=quote, escape=escape), skipped))
        ]  # fmt: skip
        if not fitting:
            continue
        best = min(fitting, key=lambda item: item[:-1])[-1]
        best = _spaced(lines, best) or best
        apostrophes = (
            d for *_, d in fitting
            if replace(best.text_format, quote="'", escape=d.text_format.escape) == d.text_format
        )  # fmt: skip
        quoted = next(apostrophes, None)
        return quoted if quoted and _quoted_by_apostrophes(lines, best) else best
    return None


def _spaced(lines: list[str], best: _Dialect) -> _Dialect | None:
    """The dialect with runs of spaces between cells, if tabs divide rows into cells that have such runs."""
    runs = sum(bool(re.search(r"\S {2,}\S", line)) for line in lines) >= len(lines) / 2
    delimiter = best.text_format.delimiter
    if delimiter not in ("tab", "space") or (delimiter == "tab" and not runs):
        return None
    spaced = _fit(lines, replace(best.text_format, delimiter="whitespace", skip_lines=0), MAX_SKIPPED)
    # Single spaces would make empty cells of a run.
    return spaced if spaced and (spaced.cells >= best.cells or (delimiter == "space" and runs)) else None


def _quoted_by_apostrophes(lines: list[str], dialect: _Dialect) -> bool:
    """Whether texts are quoted by apostrophes, and none by double quotes."""
    delimiter = dialect.text_format.delimiter_character
    cells = [cell for line in lines for cell in line.rstrip("\n").split(delimiter)]
    quoted = [c for c in cells if len(c) > 1 and c.startswith("'") and c.endswith("'")]
    if any(c.startswith('"') for c in cells):
        return False
    return bool(quoted) and not any(c.startswith("'") != c.endswith("'") for c in cells if "'" in c)


def _fit(lines: list[str], text_format: TextFormat, most_skipped: int) -> _Dialect | None:
    """A dialect, if it divides the records into equally many cells, and more than one; after a title with fewer."""
    fewest = 0
    if not any(text_format.delimiter_character in line for line in lines[: MAX_SKIPPED + 2]):
        return None
    for skipped in range(min(most_skipped, len(lines))):
        widths = _widths(lines[skipped:], text_format) if lines[skipped].strip() else None
        if widths is not None and widths[1] > 1 and (not skipped or len(lines) > skipped + 1):
            first, others = widths
            if first == others:
                shifted = replace(text_format, skip_lines=skipped)
                return _Dialect(shifted, others) if others > fewest else None
            if extra := _extra_cell(lines[skipped:], text_format):
                return _Dialect(replace(text_format, skip_lines=skipped, extra_cell=extra), others)
        fewest = max(fewest, len(_record(lines[skipped], text_format)))
    return None


def _record(line: str, text_format: TextFormat) -> list[str]:
    return next((cells for _, cells in text_files.records([line], replace(text_format, skip_lines=0))), [])


def _extra_cell(lines: list[str], text_format: TextFormat) -> str:
    """Which cell rows have more than the header; empty if the first line is a title, and the second the header."""
    header, *rows = [cells for _, cells in text_files.records(lines[:HEAD_RECORDS], text_format)]
    if len(rows) < 2 or len(header) < 2 or (is_header(rows) and not is_header(rows[1:])):
        return ""
    if not any(row[-1].strip() for row in rows):
        return "last"
    first = [row[0] for row in rows]
    return "first" if len({*first}) == len(first) and all(first) else ""


def _widths(lines: list[str], text_format: TextFormat) -> tuple[int, int] | None:
    """The number of cells of the first record, and of the others, the same or one more; None if they differ."""
    first = others = 0
    try:
        for i, (_, cells) in enumerate(text_files.records(lines, text_format, strict=True)):
            if not first:
                first = len(cells)
            elif not others:
                others = len(cells)
                if others not in (first, first + 1) or others == 1:
                    return None
            elif len(cells) != others:
                return None
            if i > HEAD_RECORDS:
                break
    except csv.Error:
        return None
    return (first, others or first) if first else None
