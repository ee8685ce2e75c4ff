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
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from perennial.core.dates import utc_now
from perennial.core.errors import DataError, PerennialError, StorageFaultError
from perennial.core.settings import settings
from perennial.core.sql import SQL_TYPES, quote_identifier, text_literal
from perennial.storage import duckdb_session, locks, object_store

if TYPE_CHECKING:
    import duckdb

#: Characters of a request's identifier.
_ID_LENGTH = 16
#: Bytes of a block of SHA-256, to which HMAC pads its secret.
_BLOCK = 64


@dataclass(frozen=True)
class ErasureRequest:
    """Keys whose rows are to be erased, or were.

    Attributes:
        model: name of the model.
        columns: the columns that the keys consist of, each with its declared type.
        hashes: of each key, in order.
        rows: hashes of the row keys (``data.key``) that had these keys: other tables hold nothing else of them.
        secret_id: which secret the hashes were made with.
        requested_by: who asked for it.
        requested_at: UTC, as `dates.utc_now` writes it.
        completed_at: when it was last carried out; empty before.
    """

    model: str
    columns: dict[str, str]
    hashes: list[str]
    rows: list[str]
    secret_id: str
    requested_by: str
    requested_at: str
    completed_at: str = ""

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


def hash_sql(columns: Mapping[str, str]) -> str:
    """SQL of the hash of a row's values of some columns.

    Args:
        columns: the columns, each with its declared type.
    """
    names = sorted(columns)
    cells = ", ".join(f"TRY_CAST({quote_identifier(c)} AS {SQL_TYPES[columns[c]]})::VARCHAR" for c in names)
    message = f"encode({text_literal(json.dumps(names))} || to_json([{cells}])::VARCHAR)"
    block = _secret().ljust(_BLOCK, b"\0")
    inner, outer = (bytes(byte ^ pad for byte in block).hex() for pad in (0x36, 0x5C))
    return f"sha256(unhex('{outer}') || unhex(sha256(unhex('{inner}') || {message})))"


def condition_sql(request: ErasureRequest, present: Collection[str], key: Mapping[str, str]) -> str:
    """SQL condition of the rows of a request; empty if a table with these columns cannot have any.

    Args:
        request: the request.
        present: the columns of the table.
        key: the columns of the row key, each with its declared type.
    """
    parts = []
    for columns, hashes in ((request.columns, request.hashes), (key, request.rows)):
        if hashes and set(columns) <= set(present):
            parts.append(f"{hash_sql(columns)} IN ({', '.join(map(text_literal, hashes))})")
    return f"coalesce(({' OR '.join(parts)}), FALSE)" if parts else ""


def suppression_sql(model: str, present: Collection[str], key: Mapping[str, str]) -> str:
    """SQL condition of the rows that were erased and are not published again; empty if there can be none.

    Args:
        model: name of the model.
        present: the columns of the rows.
        key: the columns of the row key, each with its declared type.

    Raises:
        PerennialError: the secret of a request is not the one of this environment.
    """
    conditions = [condition_sql(request, present, key) for request in load_all(model)]
    return " OR ".join(filter(None, conditions))


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


def load_all(model: str) -> Iterator[ErasureRequest]:
    """Read the requests of a model, in order of their names."""
    for name in sorted(object_store.list_files(f"{settings().lake}/erasures/{model}")):
        request = _read(model, name.removesuffix(".json"))
        if request is not None:
            yield request


def store(request: ErasureRequest) -> None:
    """Write a request."""
    object_store.write_text(_uri(request.model, request.identifier), json.dumps(asdict(request), indent=1))


def completed(request: ErasureRequest) -> ErasureRequest:
    """The request with the time at which it was carried out, which is stored."""
    done = replace(request, completed_at=utc_now())
    store(done)
    return done


def _read(model: str, identifier: str) -> ErasureRequest | None:
    if not identifier.isalnum():
        return None
    uri = _uri(model, identifier)
    try:
        request = ErasureRequest(**json.loads(object_store.read_text(uri)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise StorageFaultError(
            f"{uri} is not a request to erase rows", "restore it from a backup", model=model
        ) from error
    if request.secret_id != _secret_id():
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
