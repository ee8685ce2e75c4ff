"""Signing and verification of registered versions, with the keys that are configured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from perennial.core import signing_keys
from perennial.core.errors import ArtifactError, LedgerError, PerennialError
from perennial.core.settings import settings
from perennial.core.signing_keys import SIGNING_KEY, TRUSTED_KEYS, TrustedKeys
from perennial.modeling.training_records import TrainingRecord
from perennial.storage import ledger, leftovers
from perennial.storage.ledger import LedgerKind, LedgerRecord
from perennial.storage.ledger_table import chain

#: Name of the file with the signature, among those that training stores with the model.
SIGNATURE_FILE = "model.sig"
#: What is signed to try whether the key can be used.
_TRIAL = {"trial": hashlib.sha256(b"").hexdigest()}


@dataclass(frozen=True)
class SignedFiles:
    """The files of a version.

    Attributes:
        model: name of the model.
        version: number of the version.
        run_id: MLflow run that trained it.
        digests: SHA-256 of each of its files, by name.
        recorded_at: when the ledger recorded its training; empty: that is being done.
    """

    model: str
    version: str
    run_id: str
    digests: Mapping[str, str]
    recorded_at: str = ""

    @property
    def moment(self) -> datetime:
        """When its training was recorded, at the latest; a certificate must have been valid then."""
        return datetime.fromisoformat(self.recorded_at) if self.recorded_at else datetime.now(UTC)

    @property
    def name(self) -> str:
        """What the signature calls them: a version is signed before it has a number."""
        return f"{self.model}:{self.run_id}"


#: Marks of the signatures that this process has verified.
_verified: set[str] = set()
#: A version's number, run, and files with their digests.
_Recorded = tuple[str, str, frozenset[tuple[str, str]]]
#: Versions that may be without a signature, by lake, model, and number and hash of the last such record.
_exempt: dict[tuple[str, str, int, str], set[_Recorded]] = {}


def require_key(model: str) -> None:
    """Try the key, so that a training fails before hours of work if its version could not be signed.

    Args:
        model: name of the model, for messages.

    Raises:
        PerennialError: versions have to be signed and cannot be, or not so that this machine accepts it.
    """
    trusted, key = signing_keys.trusted_keys(), signing_keys.signing_key()
    if trusted and not key:
        raise PerennialError(
            f"the version could not be signed, and would be refused: {TRUSTED_KEYS} is set, {SIGNING_KEY} is not",
            f"set {SIGNING_KEY} where models are trained (for pods in secrets of the compute profile)",
            model=model,
        )
    if key:
        sign(model, "trial", _TRIAL)


def sign(model: str, run_id: str, digests: Mapping[str, str], recorded_at: str = "") -> str | None:
    """Sign the files of a version.

    Args:
        model: name of the model.
        run_id: MLflow run that trains it.
        digests: SHA-256 of each of its files, by name.
        recorded_at: when the ledger recorded its training; empty: that is being done.

    Returns:
        The content of `SIGNATURE_FILE`; None if no key is configured.

    Raises:
        PerennialError: the key cannot be used, or the keys that are trusted do not include it.
    """
    key, trusted = signing_keys.signing_key(), signing_keys.trusted_keys()
    if key is None:
        return None
    from perennial.modeling.signing import _bundles

    files = SignedFiles(model, "", run_id, digests, recorded_at)
    with leftovers.temporary_folder("sign-") as folder:
        folder.chmod(0o700)
        try:
            bundle = _bundles.sign(files.name, digests, key, files.moment, folder)
        except _bundles.RefusedSignatureError as error:
            raise PerennialError(
                f"the version cannot be signed: {error}",
                f"set {signing_keys.SIGNING_CERTIFICATE} to a valid one; or, for an older version, unset it, set "
                f"{SIGNING_KEY} to a key without a certificate, and add its public key to {TRUSTED_KEYS}",
                model=model,
            ) from None
        except Exception as error:  # a module of PKCS #11 raises its own, and PKCS #11 may not be installed
            raise PerennialError(
                f"the version cannot be signed: {_without_pin(str(error), key.uri)}",
                f"check {SIGNING_KEY} and, with a certificate, {signing_keys.SIGNING_CERTIFICATE}: an EC key on "
                "the curve P-256, P-384 or P-521 is needed",
                model=model,
            ) from None
    if trusted and (refusal := _refusal(files, bundle, trusted)):
        raise PerennialError(
            f"the signature would be refused: {refusal}",
            f"add the public key, or the authority's certificate, of {SIGNING_KEY} to {TRUSTED_KEYS}",
            model=model,
        )
    return bundle


def _without_pin(text: str, uri: str) -> str:
    """A message without the URI of the key, which may have a PIN."""
    return (text.replace(uri, "the PKCS #11 URI") if uri else text)[:300]


def verify(files: SignedFiles, fetch: Callable[[bool], str | None], *, again: bool = False) -> None:
    """Verify the signature of a version, if keys are trusted and unless this machine has done so.

    Args:
        files: the version's files.
        fetch: returns the content of its `SIGNATURE_FILE`, None if it has none; from MLflow even if this machine has a
            copy where the argument is true.
        again: verify it anew.

    Raises:
        ArtifactError: the version has no signature, or not one of a trusted key about these files.
    """
    trusted = signing_keys.trusted_keys()
    if trusted is None:
        return
    mark = _mark(files, trusted)
    if not again and (mark in _verified or mark in _load_marks()):
        _verified.add(mark)
        return
    bundle = fetch(again)
    refusal = bundle is not None and _refusal(files, bundle, trusted)
    if refusal and not again:
        bundle = fetch(True)
        refusal = bundle is not None and _refusal(files, bundle, trusted)
    if bundle is None:
        if _may_be_unsigned(files, trusted):
            _add_mark(mark)
            return
        raise ArtifactError(
            f"version {files.version} has no signature ({SIGNATURE_FILE})",
            f"restore MLflow's artifact store; or, if the version is older than {TRUSTED_KEYS}, sign it: "
            f"perennial sign {files.model} {files.version}",
            model=files.model,
        )
    if refusal:
        raise ArtifactError(
            f"the signature of version {files.version} is refused: {refusal}",
            "do not use the version until you know who changed it: restore MLflow's artifact store, or roll back to "
            f"another version; if its key should be trusted, add it to {TRUSTED_KEYS}",
            model=files.model,
        )
    _add_mark(mark)


def _may_be_unsigned(files: SignedFiles, trusted: TrustedKeys) -> bool:
    """Whether the ledger has had the version since before signatures were required.

    The chain up to the last such record is checked, not only its number and hash: these alone would not show a record
    that somebody changed before it. A version that is accepted is remembered, as a signature is.
    """
    last = trusted.last_unsigned(files.model)
    if last is None:
        return False
    key = (settings().lake, files.model, *last)
    if key not in _exempt:
        versions = _recorded_until(files.model, *last)
        if versions is None:
            return False
        _exempt[key] = versions  # the hash of the last record stands for all of them
    return (files.version, files.run_id, frozenset(files.digests.items())) in _exempt[key]


def _recorded_until(model: str, number: int, expected: str) -> set[_Recorded] | None:
    """The versions that a ledger has up to a record; None if the chain up to there is broken or has another hash."""
    versions: set[_Recorded] = set()

    def earlier() -> Iterator[LedgerRecord]:
        for record in ledger.iterate(model):
            if record["sequence"] > number:
                return
            if record["kind"] == LedgerKind.TRAINING and record["model_version"]:
                training = TrainingRecord.parse(record)
                versions.add((training.version, training.run_id, frozenset(training.digests.items())))
            yield record

    try:
        _, digest = chain.check_chain(model, earlier(), number)
    except LedgerError:
        return None
    return versions if digest == expected else None


def _refusal(files: SignedFiles, bundle: str, trusted: TrustedKeys) -> str:
    """Why a signature is not accepted; empty if it is."""
    from perennial.modeling.signing import _bundles

    with leftovers.temporary_folder("sign-") as folder:
        try:
            _bundles.verify(bundle, files.name, files.digests, trusted, files.moment, folder)
        except _bundles.RefusedSignatureError as error:
            return str(error)
    return ""


def _mark(files: SignedFiles, trusted: TrustedKeys) -> str:
    """A digest of everything that the outcome depends on, except the signature."""
    content = [files.name, sorted(files.digests.items()), files.recorded_at, trusted.fingerprint]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _load_marks() -> set[str]:
    """The signatures that this machine has verified."""
    try:
        return set((settings().home / "cache" / "verified" / "signatures.txt").read_text().split())
    except (OSError, ValueError):
        return set()


def _add_mark(mark: str) -> None:
    """Remember a verified signature; if that cannot be written, only this process does."""
    _verified.add(mark)
    path = settings().home / "cache" / "verified" / "signatures.txt"
    if mark in _load_marks():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"{mark}\n")
    except OSError:
        return
