"""The key pair of a local stack, and the variables that name others."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from perennial.core import signing_keys
from perennial.core.errors import PerennialError
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind


@pytest.fixture
def home(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without keys."""
    for name in (signing_keys.SIGNING_KEY, signing_keys.SIGNING_CERTIFICATE, signing_keys.TRUSTED_KEYS,
                 signing_keys.SIGNED_SINCE):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    return empty_home


def test_a_time_of_an_earlier_release_becomes_the_last_records_before_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither later records count, nor one that somebody added later with an earlier time."""
    signing_keys.make_local_keys(home)
    records = []
    times = ("2026-11-29T10:00:00Z", "2026-11-29T11:00:00Z", "2026-11-30T00:00:00Z", "2026-11-29T10:30:00Z")
    for time in times:
        monkeypatch.setattr(ledger, "utc_now", partial(str, time))
        records.append(
            ledger.append(
                "toy", kind=LedgerKind.TRAINING, decision=Decision.ACCEPTED, reason="", actor="gate"
            )
        )
    monkeypatch.setattr(ledger, "utc_now", lambda: "2026-12-01T00:00:00Z")
    ledger.append("young", kind=LedgerKind.TRAINING, decision=Decision.ACCEPTED, reason="", actor="gate")
    since = home / "signing" / "since.txt"
    since.write_text("2026-11-29T11:30:00Z\n")
    with pytest.raises(PerennialError, match=r"since\.txt is not a list of last records") as caught:
        signing_keys.trusted_keys()
    assert "make start" in caught.value.remedy
    assert not signing_keys.make_local_keys(home, ledger.last_records)
    trusted = signing_keys.trusted_keys()
    assert trusted is not None and trusted.last_unsigned("toy") == (2, records[1]["hash"])
    assert trusted.last_unsigned("young") is None
    before = since.read_text()
    assert not signing_keys.make_local_keys(home, ledger.last_records) and since.read_text() == before
    since.write_text("toy=2")
    with pytest.raises(PerennialError, match=r"since\.txt is not a list of last records") as caught:
        signing_keys.trusted_keys()
    assert "delete it" in caught.value.remedy


def test_without_the_lake_no_key_is_made(home: Path) -> None:
    """A training would sign with a key that the next start replaces."""

    def unreachable(_: str) -> dict[str, tuple[int, str]]:
        raise PerennialError("the lake cannot be read", "check it")

    with pytest.raises(PerennialError, match="the lake cannot be read"):
        signing_keys.make_local_keys(home, unreachable)
    assert signing_keys.signing_key() is None
    assert signing_keys.make_local_keys(home) and signing_keys.signing_key() is not None


def test_a_key_may_be_in_several_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `openssl ecparam` writes parameters and key."""
    signing_keys.make_local_keys(home)
    private, parameters = home / "signing" / "private.pem", home / "params.pem"
    parameters.write_text("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n")
    for paths, path in (([parameters, private], ""), ([private], str(private))):
        monkeypatch.setenv(signing_keys.SIGNING_KEY, os.pathsep.join(map(str, paths)))
        key = signing_keys.signing_key()
        assert key is not None and (key.path, key.private_key) == (path, private.read_text().strip())
