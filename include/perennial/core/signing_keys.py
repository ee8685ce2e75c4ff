"""The key that signs versions, the keys that are trusted, and the key pair of a local stack.

`perennial.modeling.signing` signs and verifies with them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from perennial.core.dates import utc_now, utc_timestamp
from perennial.core.errors import PerennialError
from perennial.core.settings import settings

__all__ = [
    "SIGNING_KEY",
    "TRUSTED_KEYS",
    "SigningKey",
    "TrustedKeys",
    "make_local_keys",
    "signing_key",
    "trusted_keys",
]

#: Environment variable with the private key: a file, its content in PEM, or a PKCS #11 URI.
SIGNING_KEY = "PERENNIAL_SIGNING_KEY"
#: Environment variable with the signing certificate and the intermediate ones after it: a file, or its content.
SIGNING_CERTIFICATE = "PERENNIAL_SIGNING_CERTIFICATE"
#: Environment variable with the public keys and the certificates that are trusted: files, or their content.
TRUSTED_KEYS = "PERENNIAL_TRUSTED_KEYS"
#: Environment variable with the time before which versions may be without a signature.
SIGNED_SINCE = "PERENNIAL_SIGNED_SINCE"
#: Scheme of the URIs that name a key in a hardware security module or a key management service.
PKCS11 = "pkcs11:"
_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


@dataclass(frozen=True)
class SigningKey:
    """What versions are signed with.

    Attributes:
        uri: PKCS #11 URI of the key; empty if it is a file's content.
        private_key: the private key in PEM; empty with a URI.
        certificates: the signing certificate, and intermediate ones, each in PEM; empty without a certificate.
    """

    uri: str
    private_key: str
    certificates: tuple[str, ...]

    def __repr__(self) -> str:
        return f"SigningKey(certificates={len(self.certificates)})"


@dataclass(frozen=True)
class TrustedKeys:
    """Whose signatures are accepted.

    Attributes:
        public_keys: public keys in PEM.
        certificates: certificates of authorities in PEM.
        since: time in UTC before which a version may have been registered without a signature; empty: none.
    """

    public_keys: tuple[str, ...]
    certificates: tuple[str, ...]
    since: str

    @property
    def fingerprint(self) -> str:
        """A digest of the keys and the time."""
        parts = [*sorted(self.public_keys), *sorted(self.certificates), self.since]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def pem(self) -> str:
        """All keys and certificates, as the content of one file."""
        return "\n".join([*self.public_keys, *self.certificates])


def signing_key() -> SigningKey | None:
    """The key that versions are signed with; None if none is configured.

    Raises:
        PerennialError: what is configured cannot be used.
    """
    text = os.environ.get(SIGNING_KEY, "").strip()
    certificate = os.environ.get(SIGNING_CERTIFICATE, "").strip()
    certificates = tuple(_blocks(SIGNING_CERTIFICATE, certificate, ("CERTIFICATE",)))
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
    return SigningKey("", keys[0], certificates)


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
        text, since = str(default), since or (_folder() / "since.txt").read_text().strip()
    blocks = list(_blocks(TRUSTED_KEYS, text, ("PUBLIC KEY", "CERTIFICATE")))
    return TrustedKeys(
        tuple(block for block in blocks if "BEGIN PUBLIC KEY" in block),
        tuple(block for block in blocks if "BEGIN CERTIFICATE" in block),
        _timestamp(since) if since else "",
    )


def _timestamp(text: str) -> str:
    """A time as the ledger writes it."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError(text)
        return utc_timestamp(moment)
    except ValueError:
        raise PerennialError(
            f"{SIGNED_SINCE} is not a time with a time zone",
            f"set {SIGNED_SINCE} to one such as 2026-01-31T12:00:00+00:00",
        ) from None


def _folder() -> Path:
    """Where the key pair of a local stack lies."""
    return settings().home / "signing"


def _blocks(variable: str, text: str, kinds: tuple[str, ...]) -> Iterator[str]:
    """The PEM blocks that a variable holds, or that the files have which it names.

    A value is never quoted: somebody may have put a key there in another format.
    """
    if not text:
        return
    contents = [text] if "-----BEGIN" in text else [_read(variable, p) for p in text.split(os.pathsep) if p]
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


def _read(variable: str, path: str) -> str:
    try:
        return Path(path).read_text("ascii", errors="replace")
    except OSError as error:
        raise PerennialError(
            f"{variable} names a file that cannot be read: {error.strerror}",
            f"set {variable} to a file in PEM format that this user can read, or unset it",
        ) from None


def make_local_keys(home: Path) -> bool:
    """Make the key pair of a local stack, unless it is there; only its owner can read the private key.

    Versions that the ledger recorded before are accepted without a signature.

    Args:
        home: working folder of the stack.

    Returns:
        Whether it was made.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = home / "signing"
    if (folder / "public.pem").is_file():
        return False
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    # The public key is written last: with it the pair is complete.
    for name, content in {
        "private.pem": pem,
        "since.txt": utc_now().encode(),
        "public.pem": public,
    }.items():
        part = folder / f"{name}.part"
        with open(part, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(content)
        part.replace(folder / name)
    return True
