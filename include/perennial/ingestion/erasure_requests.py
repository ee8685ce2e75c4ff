"""Requests to erase the rows of some keys. A request holds hashes of the keys, never the keys.

A key is hashed with HMAC-SHA-256, because a plain hash of a customer number is found by trying all numbers. DuckDB
computes the same hash of each row, so that neither Airflow, nor a log, nor the ledger needs the key. The requests stay
after they were carried out: what a landed file still has of these keys is not published again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from perennial.core.dates import utc_now
from perennial.core.errors import DataError, PerennialError, StorageFaultError
from perennial.core.settings import settings
from perennial.core.sql import SQL_TYPES, quote_identifier, text_literal
from perennial.storage import duckdb_session, locks, object_store
from perennial.storage.object_store import FileStat

if TYPE_CHECKING:
    import duckdb

#: Characters of a request's identifier.
_ID_LENGTH = 16
#: Bytes of a block of SHA-256, to which HMAC pads its secret.
_BLOCK = 64
#: Variables of a connection with the secret, padded for both hashes of HMAC: SQL text may be in an error's message.
_INNER, _OUTER = "__erasure_inner", "__erasure_outer"
#: Columns, each with its declared type.
_Columns = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RemovedCounts:
    """What was removed, or is about to be.

    Attributes:
        rows: number of rows, by table and partition.
        files: number of files of older table versions, by table.
        reports: number of data docs and profiles.
    """

    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    reports: int = 0

    def at_least(self, other: RemovedCounts) -> RemovedCounts:
        """The greater of each two numbers: what an attempt that was interrupted removed is not counted again."""
        return self._combined(other, max)

    def plus(self, other: RemovedCounts) -> RemovedCounts:
        """The sums of each two numbers."""
        return self._combined(other, lambda a, b: a + b)

    def _combined(self, other: RemovedCounts, combine: Callable[[int, int], int]) -> RemovedCounts:
        return RemovedCounts(
            {
                table: _combined(self.rows.get(table, {}), other.rows.get(table, {}), combine)
                for table in dict.fromkeys([*self.rows, *other.rows])
            },
            _combined(self.files, other.files, combine),
            combine(self.reports, other.reports),
        )


def _combined(
    one: Mapping[str, int], other: Mapping[str, int], combine: Callable[[int, int], int]
) -> dict[str, int]:
    return {key: combine(one.get(key, 0), other.get(key, 0)) for key in sorted({*one, *other})}


@dataclass(frozen=True)
class Attempt:
    """What a run that erases rows stores before it removes the first one, for the run that follows an interruption.

    Attributes:
        counts: what is about to be removed.
        published: `delta_tables.files_digest` of the published partitions before that, by partition.
    """

    counts: RemovedCounts = field(default_factory=RemovedCounts)
    published: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ErasureRequest:
    """Keys whose rows are to be erased, or were.

    Attributes:
        model: name of the model.
        columns: the columns that the keys consist of, each with its declared type.
        hashes: of each key, in order.
        rows: hashes of the rows that had these keys, by partition and row key (``data.key``): other tables hold nothing
            else of them.
        secret_id: which secret the hashes were made with.
        requested_by: who asked for it.
        requested_at: UTC, as `dates.utc_now` writes it.
        completed_at: when it was last carried out; empty before.
        partitions: the partitions that had such rows in any version of a table, in order.
        emptied: those of which every prediction was of the keys, and is removed.
        versions: numbers of the versions that were fitted or evaluated on rows that were removed.
        joining: numbers of the versions of other models that learned features of such rows, by model.
        removed: what the runs removed that ended.
        attempt: of the run that has not ended, or was interrupted; None if there is none.
    """

    model: str
    columns: dict[str, str]
    hashes: list[str]
    rows: list[str]
    secret_id: str
    requested_by: str
    requested_at: str
    completed_at: str = ""
    partitions: list[str] = field(default_factory=list)
    emptied: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    joining: dict[str, list[str]] = field(default_factory=dict)
    removed: RemovedCounts = field(default_factory=RemovedCounts)
    attempt: Attempt | None = None

    @classmethod
    def parse(cls, text: str) -> ErasureRequest:
        """Read a stored request.

        Raises:
            ValueError, TypeError, KeyError: it is none.
        """
        content = json.loads(text)
        content["removed"] = RemovedCounts(**content.get("removed", {}))
        if attempt := content.get("attempt"):
            content["attempt"] = Attempt(RemovedCounts(**attempt["counts"]), attempt["published"])
        return cls(**content)

    @property
    def total(self) -> RemovedCounts:
        """What all runs removed, the one that has not ended included."""
        return self.removed.plus(self.attempt.counts) if self.attempt else self.removed

    @property
    def identifier(self) -> str:
        """What names the request: the beginning of the SHA-256 of what it asks for."""
        content = json.dumps([self.model, sorted(self.columns), sorted(self.hashes)])
        return hashlib.sha256(content.encode()).hexdigest()[:_ID_LENGTH]


def make(
    model: str, columns: Mapping[str, str], keys: Sequence[Mapping[str, str]], requested_by: str
) -> ErasureRequest:
    """Make and store the request to erase the rows of some keys; the same keys give the same request.

    Args:
        model: name of the model.
        columns: the columns that the keys consist of, each with its declared type.
        keys: the keys, as text by column.
        requested_by: who asks for it.

    Raises:
        DataError: a value cannot be read as the type of its column; it is not quoted.
        StorageError: the lake cannot be written.
    """
    with duckdb_session.connect_small() as con:
        provide_secret(con)
        hashes = sorted({_hash_of(con, model, columns, key, i) for i, key in enumerate(keys, 1)})
    request = ErasureRequest(model, dict(columns), hashes, [], _secret_id(), requested_by, utc_now())
    stored = _read(model, request.identifier)
    if stored is not None:
        return stored
    store(request)
    return request


def _hash_of(
    con: duckdb.DuckDBPyConnection,
    model: str,
    columns: Mapping[str, str],
    key: Mapping[str, str],
    number: int,
) -> str:
    for column, kind in columns.items():
        ((value,),) = con.execute(f"SELECT TRY_CAST(? AS {SQL_TYPES[kind]})", [key[column]]).fetchall()
        if value is None:
            raise DataError(
                f"key {number}: the value of {column!r} is no {kind}",
                "write it as the data of the model has it",
                model=model,
            )
    values = ", ".join(f"? AS {quote_identifier(c)}" for c in columns)
    ((digest,),) = con.execute(
        f"SELECT {hash_sql(columns)} FROM (SELECT {values})", [key[c] for c in columns]
    ).fetchall()
    return str(digest)


def provide_secret(con: duckdb.DuckDBPyConnection) -> None:
    """Let the SQL of `hash_sql` run in a connection. SQL of a model folder cannot read its variables."""
    block = _secret().ljust(_BLOCK, b"\0")
    for name, pad in ((_INNER, 0x36), (_OUTER, 0x5C)):
        con.execute(f"SET VARIABLE {name} = {text_literal(bytes(byte ^ pad for byte in block).hex())}")


def hash_sql(columns: Mapping[str, str], partition: str = "") -> str:
    """SQL of the hash of a row's values of some columns, for a connection with the secret (`provide_secret`).

    Args:
        columns: the columns, each with its declared type.
        partition: SQL of the row's partition, which is hashed, too: a row key identifies a row within it only.
    """
    names = sorted(columns)
    cells = ", ".join([*(f"{_cell(c, columns[c])}::VARCHAR" for c in names), *filter(None, [partition])])
    message = f"encode({text_literal(json.dumps(names))} || to_json([{cells}])::VARCHAR)"
    return (
        f"sha256(unhex(getvariable('{_OUTER}')) || "
        f"unhex(sha256(unhex(getvariable('{_INNER}')) || {message})))"
    )


def known_sql(columns: Mapping[str, str]) -> str:
    """SQL condition that a row has a value in each of some columns: rows without one would all have one hash."""
    return " AND ".join(f"{_cell(c, kind)} IS NOT NULL" for c, kind in columns.items())


def _cell(column: str, kind: str) -> str:
    return f"TRY_CAST({quote_identifier(column)} AS {SQL_TYPES[kind]})"


def row_hash_sql(key: dict[str, str], partition: str) -> str:
    """SQL of the hash of a row; null without a key, which all such rows would share."""
    digest = hash_sql(key, quote_identifier(partition))
    return f"CASE WHEN {known_sql(key)} THEN {digest} END"


def json_path(column: str) -> str:
    """The path of a column in a record of quarantine, for DuckDB."""
    quoted = column.replace("\\", "\\\\").replace('"', '\\"')
    return f'$."{quoted}"'


def among_sql(columns: Mapping[str, str], hashes: Collection[str], partition: str = "") -> str:
    """SQL condition that the hash of a row's values of some columns is one of some.

    Args:
        columns: the columns, each with its declared type.
        hashes: the hashes; there is no row of none.
        partition: as of `hash_sql`.
    """
    if not hashes:
        return "FALSE"
    listed = ", ".join(map(text_literal, sorted(hashes)))
    return f"coalesce({known_sql(columns)} AND {hash_sql(columns, partition)} IN ({listed}), FALSE)"


def condition_sql(
    requests: Iterable[ErasureRequest], present: Collection[str], key: Mapping[str, str], partition: str = ""
) -> str:
    """SQL condition of the rows of requests; empty if a table with these columns cannot have any.

    Where a row has values of all columns of a request, these decide: the row may have got another value since it had
    the key, and be of somebody else. Otherwise the row key decides. Requests for the same columns share one hash of
    each row.

    Args:
        requests: the requests.
        present: the columns of the table.
        key: the columns of the row key, each with its declared type; none where it identifies no row.
        partition: SQL of a row's partition.
    """
    by_columns: dict[_Columns, set[str]] = {}
    by_key: dict[_Columns, set[str]] = {}  # by the columns that must be without a value
    for request in requests:
        columns = tuple(sorted(request.columns.items()))
        is_there = set(request.columns) <= set(present)
        if is_there:
            by_columns.setdefault(columns, set()).update(request.hashes)
        if key and request.rows and set(key) <= set(present):
            by_key.setdefault(columns if is_there else (), set()).update(request.rows)
    parts = [among_sql(dict(columns), hashes) for columns, hashes in by_columns.items()]
    for columns, hashes in by_key.items():
        unknown = f"NOT ({known_sql(dict(columns))}) AND " if columns else ""
        parts.append(f"({unknown}{among_sql(key, hashes, partition)})")
    return " OR ".join(parts)


def load(model: str, identifier: str) -> ErasureRequest:
    """Read a request.

    Raises:
        PerennialError: there is none of that name, or its secret is not the one of this environment.
    """
    request = _read(model, identifier)
    if request is None:
        raise PerennialError(
            f"there is no request {identifier!r} to erase rows",
            f"make one: perennial erase {model} --keys FILE --only-request",
            model=model,
        )
    return request


def files(model: str) -> dict[str, FileStat]:
    """The files of the requests of a model, which change when one is made or carried out."""
    return object_store.list_files(f"{settings().lake}/erasures/{model}")


def begun_since(model: str, before: Mapping[str, FileStat]) -> Iterator[ErasureRequest]:
    """Read the requests of a model that were carried out, or began to be, since a moment.

    Args:
        model: name of the model.
        before: `files` of that moment.
    """
    for name, stat in files(model).items():
        if before.get(name) != stat:
            request = _read(model, name.removesuffix(".json"), compares=False)
            if request is not None and (request.attempt or request.completed_at):
                yield request


def load_all(model: str) -> Iterator[ErasureRequest]:
    """Read the requests of a model, in order of their names."""
    for name in sorted(files(model)):
        request = _read(model, name.removesuffix(".json"))
        if request is not None:
            yield request


def store(request: ErasureRequest) -> None:
    """Write a request."""
    object_store.write_text(_uri(request.model, request.identifier), json.dumps(asdict(request), indent=1))


def completed(request: ErasureRequest) -> ErasureRequest:
    """The request with the time at which it was carried out, which is stored."""
    done = replace(request, completed_at=utc_now(), removed=request.total, attempt=None)
    store(done)
    return done


def _read(model: str, identifier: str, *, compares: bool = True) -> ErasureRequest | None:
    """Read a request; None if there is none. ``compares``: whether its hashes are needed, and so their secret."""
    if not identifier.isalnum():
        return None
    uri = _uri(model, identifier)
    try:
        request = ErasureRequest.parse(object_store.read_text(uri))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise StorageFaultError(
            f"{uri} is not a request to erase rows", "restore it from a backup", model=model
        ) from error
    if compares and request.secret_id != _secret_id():
        raise PerennialError(
            f"request {identifier} was hashed with another secret than the one of this environment",
            "set PERENNIAL_ERASURE_SECRET to the one that it was made with, for each worker and pod; "
            f"or delete {uri}, and make it again",
            model=model,
        )
    return request


def _uri(model: str, identifier: str) -> str:
    return f"{settings().lake}/erasures/{model}/{identifier}.json"


def _secret() -> bytes:
    """The secret of the hashes, as 32 bytes: that of the environment, or else of the lake, where it is made."""
    text = settings().erasure_secret or _secret_of_lake()
    return hashlib.sha256(text.encode()).digest()


def _secret_of_lake() -> str:
    uri = f"{settings().lake}/erasures/secret"
    try:
        return object_store.read_text(uri)
    except FileNotFoundError:
        pass
    with locks.hold("erasure-secret"):
        if not object_store.exists(uri):
            object_store.write_text(uri, secrets.token_hex(32))
    return object_store.read_text(uri)


def _secret_id() -> str:
    """What tells one secret from another, and does not tell the secret."""
    return hmac.new(_secret(), b"perennial", "sha256").hexdigest()[:12]
