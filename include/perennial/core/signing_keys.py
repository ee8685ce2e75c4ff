"""The key that signs versions, the keys that are trusted, and the key pair of a local stack.

`perennial.modeling.signing` signs and verifies with them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from perennial.core.errors import PerennialError
from perennial.core.settings import settings

__all__ = [
    "SIGNED_SINCE",
    "SIGNING_CERTIFICATE",
    "SIGNING_KEY",
    "TRUSTED_KEYS",
    "SigningKey",
    "TrustedKeys",
    "make_local_keys",
    "signing_certificates",
    "signing_key",
    "trusted_keys",
]

#: Environment variable with the private key: a file, its content in PEM, or a PKCS #11 URI.
SIGNING_KEY = "PERENNIAL_SIGNING_KEY"
#: Environment variable with the signing certificate and the intermediate ones after it: a file, or its content.
SIGNING_CERTIFICATE = "PERENNIAL_SIGNING_CERTIFICATE"
#: Environment variable with the public keys and the certificates that are trusted: files, or their content.
TRUSTED_KEYS = "PERENNIAL_TRUSTED_KEYS"
#: Environment variable with the last record of each model's ledger up to which versions may be without a signature.
SIGNED_SINCE = "PERENNIAL_SIGNED_SINCE"
#: Scheme of the URIs that name a key in a hardware security module or a key management service.
PKCS11 = "pkcs11:"
_LAST_RECORD = re.compile(r"([A-Za-z0-9_]+)=([1-9][0-9]*):([0-9a-f]{64})")
#: A time, which this file had at first: any record with an earlier one was accepted.
_OLD_SINCE = re.compile(r"[0-9]{4}-")
_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


@dataclass(frozen=True)
class SigningKey:
    """What versions are signed with.

    Attributes:
        uri: PKCS #11 URI of the key; empty if it is a file's content.
        private_key: the private key in PEM; empty with a URI.
        certificates: the signing certificate, and intermediate ones, each in PEM; empty without a certificate.
        path: the file of the private key, if it has nothing else; no copy of it is needed then.
    """

    uri: str
    private_key: str
    certificates: tuple[str, ...]
    path: str = ""

    def __repr__(self) -> str:
        return f"SigningKey(certificates={len(self.certificates)})"


@dataclass(frozen=True)
class TrustedKeys:
    """Whose signatures are accepted.

    Attributes:
        public_keys: public keys in PEM.
        certificates: certificates of authorities in PEM.
        since: last records of ledgers, as `SIGNED_SINCE`; versions that were recorded later must have a signature.
    """

    public_keys: tuple[str, ...]
    certificates: tuple[str, ...]
    since: str

    def last_unsigned(self, model: str) -> tuple[int, str] | None:
        """Number and hash of the last record of a model up to which versions may be without a signature."""
        for name, sequence, digest in _LAST_RECORD.findall(self.since):
            if name == model:
                return int(sequence), digest
        return None

    @property
    def fingerprint(self) -> str:
        """A digest of the keys and the records."""
        parts = [*sorted(self.public_keys), *sorted(self.certificates), self.since]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def pem(self) -> str:
        """All keys and certificates, as the content of one file."""
        return "\n".join([*self.public_keys, *self.certificates])


def signing_certificates() -> tuple[str, ...]:
    """The certificate of the signing key, and intermediate ones after it, in PEM; empty without one.

    Raises:
        PerennialError: what is configured cannot be used.
    """
    return tuple(
        _blocks(SIGNING_CERTIFICATE, os.environ.get(SIGNING_CERTIFICATE, "").strip(), ("CERTIFICATE",))
    )


def signing_key() -> SigningKey | None:
    """The key that versions are signed with; None if none is configured.

    Raises:
        PerennialError: what is configured cannot be used.
    """
    text = os.environ.get(SIGNING_KEY, "").strip()
    certificates = signing_certificates()
    if text.startswith(PKCS11):
        return SigningKey(text, "", certificates)
    default = _folder() / "private.pem"
    if not text and not certificates and default.is_file():
        text = str(default)
    if not text:
        if certificates:
            raise PerennialError(
                f"{SIGNING_CERTIFICATE} is set, and {SIGNING_KEY} is not",
                f"set {SIGNING_KEY} to the private key of the certificate, or unset {SIGNING_CERTIFICATE}",
            )
        return None
    keys = list(_blocks(SIGNING_KEY, text, ("EC PRIVATE KEY", "PRIVATE KEY")))
    if len(keys) != 1:
        raise PerennialError(
            f"{SIGNING_KEY} has {len(keys)} private keys; one is needed", f"set {SIGNING_KEY} to one key"
        )
    paths = [] if "-----BEGIN" in text else _paths(text)
    is_file = len(paths) == 1 and _read(SIGNING_KEY, paths[0]).strip() == keys[0]
    return SigningKey("", keys[0], certificates, paths[0] if is_file else "")


def trusted_keys() -> TrustedKeys | None:
    """The keys and certificates that are trusted; None if none are configured.

    Raises:
        PerennialError: what is configured cannot be used.
    """
    text, since = (os.environ.get(name, "").strip() for name in (TRUSTED_KEYS, SIGNED_SINCE))
    default = _folder() / "public.pem"
    if not text:
        if not default.is_file():
            return None
        text, since = str(default), since or _local_since()
    if any(not _LAST_RECORD.fullmatch(record) for record in since.split()):
        raise PerennialError(
            f"{SIGNED_SINCE} is not a list of last records, MODEL=NUMBER:HASH each",
            f"set {SIGNED_SINCE} to what docs/governance.md makes of perennial ledger verify --json, or unset it",
        )
    blocks = list(_blocks(TRUSTED_KEYS, text, ("PUBLIC KEY", "CERTIFICATE")))
    return TrustedKeys(
        tuple(block for block in blocks if "BEGIN PUBLIC KEY" in block),
        tuple(block for block in blocks if "BEGIN CERTIFICATE" in block),
        since,
    )


def _local_since() -> str:
    """The last records that a local stack has, as `SIGNED_SINCE`.

    Raises:
        PerennialError: the file has something else.
    """
    path = _folder() / "since.txt"
    try:
        since = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""
    if any(not _LAST_RECORD.fullmatch(record) for record in since.split()):
        raise PerennialError(
            f"{path} is not a list of last records, MODEL=NUMBER:HASH each",
            "run `make start`: it replaces the time that an earlier release wrote there by last records"
            if _OLD_SINCE.match(since)
            else "restore it from a backup, or delete it: versions that have no signature then need one "
            "(perennial sign)",
        )
    return since


def _folder() -> Path:
    """Where the key pair of a local stack lies."""
    return settings().home / "signing"


def _blocks(variable: str, text: str, kinds: tuple[str, ...]) -> Iterator[str]:
    """The PEM blocks that a variable holds, or that the files have which it names.

    A value is never quoted: somebody may have put a key there in another format.
    """
    if not text:
        return
    contents = [text] if "-----BEGIN" in text else [_read(variable, path) for path in _paths(text)]
    for content in contents:
        blocks = [(match[1], match[0]) for match in _BLOCK.finditer(content)]
        expected = " or ".join(f"BEGIN {kind}" for kind in kinds)
        if not blocks:
            raise PerennialError(
                f"{variable} is not in PEM format", f"set it to a file, or its content, with {expected}"
            )
        for kind, block in blocks:
            if kind in kinds:
                yield block
            elif kind != "EC PARAMETERS":  # which `openssl ecparam -genkey` writes before a key
                encrypted = ": encrypted keys cannot be used" if "ENCRYPTED" in kind else ""
                raise PerennialError(
                    f"{variable} has a block BEGIN {kind}{encrypted}", f"set it to one with {expected}"
                )


def _paths(text: str) -> list[str]:
    """The files that a variable names."""
    return [path for path in text.split(os.pathsep) if path]


def _read(variable: str, path: str) -> str:
    try:
        return Path(path).read_text("ascii", errors="replace")
    except OSError as error:
        raise PerennialError(
            f"{variable} names a file that cannot be read: {error.strerror}",
            f"set {variable} to a file in PEM format that this user can read, or unset it",
        ) from None


def _no_records(_: str) -> Mapping[str, tuple[int, str]]:
    return {}


def make_local_keys(
    home: Path, last_records: Callable[[str], Mapping[str, tuple[int, str]]] = _no_records
) -> bool:
    """Make the key pair of a local stack, unless it is there; only its owner can read the private key.

    Args:
        home: working folder of the stack.
        last_records: returns number and hash of the last record of each model's ledger before a time, of the very
            last one for an empty text: versions that were recorded until then are accepted without a signature.

    Returns:
        Whether it was made.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = home / "signing"
    if (folder / "public.pem").is_file():
        with contextlib.suppress(FileNotFoundError):
            since = (folder / "since.txt").read_text(errors="replace").strip()
            if _OLD_SINCE.match(since):
                _write_since(folder, last_records(since))
        return False
    # if that fails, nothing is written: the next start would replace a key that had signed versions meanwhile
    records = last_records("")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write(folder / "private.pem", pem)
    _write_since(folder, records)
    _write(folder / "public.pem", public)  # written last: with it the pair is complete
    return True


def _write_since(folder: Path, last_records: Mapping[str, tuple[int, str]]) -> None:
    """Write the last records of ledgers, as `SIGNED_SINCE` has them."""
    lines = [f"{model}={number}:{digest}" for model, (number, digest) in last_records.items() if number]
    _write(folder / "since.txt", "\n".join(lines).encode())


def _write(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    with open(part, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(content)
    part.replace(path)
