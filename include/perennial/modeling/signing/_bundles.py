"""Bundles of OpenSSF Model Signing about files whose digests are known.

The library hashes a folder. Here the digests come from whoever computed or compared them already, so that it makes and
checks the same bundle without reading the files: ``model_signing verify`` accepts it for a folder with them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from model_signing import hashing, manifest, signing, verifying
from model_signing._hashing.hashing import Digest

from perennial.core.errors import PerennialError
from perennial.core.signing_keys import TRUSTED_KEYS, SigningKey, TrustedKeys


class RefusedSignatureError(Exception):
    """A signature is not one of the trusted keys about these files; the text says why."""


class _RecordedDigests(hashing.Config):
    """Answers with known digests where the library would hash a folder.

    Args:
        name: what the bundle calls the folder.
        digests: SHA-256 of each file, by name.
    """

    def __init__(self, name: str, digests: Mapping[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._name, self._digests = name, digests

    def hash(
        self, model_path: hashing.PathLike, *, files_to_hash: Iterable[hashing.PathLike] | None = None
    ) -> manifest.Manifest:
        """The manifest of the files."""
        kind = manifest.SerializationType.from_args(
            {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []}
        )
        items = [
            kind.new_item(name, Digest("sha256", bytes.fromhex(digest)))
            for name, digest in self._digests.items()
        ]
        return manifest.Manifest(self._name, items, kind)


def sign(name: str, digests: Mapping[str, str], key: SigningKey, moment: datetime, folder: Path) -> str:
    """Sign files.

    Args:
        name: what the bundle calls them.
        digests: SHA-256 of each file, by name.
        key: the key.
        moment: of what `verify` will be told that it was signed then.
        folder: a folder of this user only, for the key while it is used.

    Returns:
        The bundle, JSON.

    Raises:
        RefusedSignatureError: the certificate is not valid today, or was not then.
        ValueError: the key, or its certificate, cannot be used.
        Exception: the module of PKCS #11 refuses, or cannot be loaded.
    """
    config = signing.Config().set_hashing_config(_RecordedDigests(name, digests))
    chain = []
    for number, certificate in enumerate(key.certificates):
        chain.append(folder / f"certificate-{number}.pem")
        chain[-1].write_text(certificate)
    if chain:
        signing_certificate = x509.load_pem_x509_certificate(chain[0].read_bytes())
        for valid_on in (datetime.now(UTC), moment):
            _refuse_invalid(signing_certificate, valid_on)
    # The library cannot read no certificate at all; a certificate is no intermediate of itself.
    intermediates = chain[1:] or chain
    if key.uri and chain:
        config.use_pkcs11_certificate_signer(
            pkcs11_uri=key.uri, signing_certificate=chain[0], certificate_chain=intermediates
        )
    elif key.uri:
        config.use_pkcs11_signer(pkcs11_uri=key.uri)
    else:
        private_key = Path(key.path or folder / "private.pem")
        if not key.path:
            private_key.touch(mode=0o600)
            private_key.write_text(key.private_key)
        if chain:
            config.use_certificate_signer(
                private_key=private_key, signing_certificate=chain[0], certificate_chain=intermediates
            )
        else:
            config.use_elliptic_key_signer(private_key=private_key)
    config.sign(Path(name), folder / "bundle.json")
    return (folder / "bundle.json").read_text("utf-8")


def verify(
    bundle: str, name: str, digests: Mapping[str, str], trusted: TrustedKeys, moment: datetime, folder: Path
) -> None:
    """Verify that a trusted key signed files with these digests.

    Args:
        bundle: the bundle.
        name: what it must call the files.
        digests: SHA-256 of each file, by name.
        trusted: the keys and certificates that are trusted.
        moment: when it was signed; a certificate must have been valid then.
        folder: a folder for the bundle and the keys.

    Raises:
        RefusedSignatureError: it is not such a signature.
        PerennialError: a trusted key or certificate cannot be used.
    """
    public_keys = _named_keys(trusted)
    try:
        content = json.loads(bundle)
        config = verifying.Config().set_hashing_config(_RecordedDigests(name, digests))
        _use_verifier(
            config, content["verificationMaterial"], public_keys, trusted.certificates, moment, folder
        )
        (folder / "bundle.json").write_text(bundle, "utf-8")
        config.verify(Path(name), folder / "bundle.json")
        statement = json.loads(base64.b64decode(content["dsseEnvelope"]["payload"]))
        signed_name = str(statement["subject"][0]["name"])
    except RefusedSignatureError:
        raise
    except Exception as error:  # whatever a bundle that somebody made up does to the library: it is refused
        raise RefusedSignatureError(_reason(error)) from error
    if signed_name != name:
        raise RefusedSignatureError("it is the signature of another version")


def _use_verifier(
    config: verifying.Config,
    material: dict[str, Any],
    public_keys: Mapping[str, str],
    authorities: Collection[str],
    moment: datetime,
    folder: Path,
) -> None:
    """Choose the trusted key that the bundle names, or the trusted certificates if it has a certificate."""
    if "publicKey" in material:
        path = folder / "public.pem"
        public_key = public_keys.get(material["publicKey"]["hint"])
        if public_key is None:
            raise RefusedSignatureError("it was made with another key than those that are trusted")
        path.write_text(public_key)
        config.use_elliptic_key_verifier(public_key=path)
        return
    chain = material["x509CertificateChain"]["certificates"]
    if not authorities:
        raise RefusedSignatureError("it was made with a certificate, and no certificate is trusted")
    # The library looks at the certificates as of the first moment at which the signing one is valid.
    _refuse_invalid(x509.load_der_x509_certificate(base64.b64decode(chain[0]["rawBytes"])), moment)
    path = folder / "authorities.pem"
    path.write_text("\n".join(authorities))
    config.use_certificate_verifier(certificate_chain=[path])


def _refuse_invalid(certificate: x509.Certificate, moment: datetime) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= moment <= last:
        raise RefusedSignatureError(
            f"its certificate is valid from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC, "
            f"and not on {moment:%Y-%m-%d %H:%M}"
        )


def _named_keys(trusted: TrustedKeys) -> dict[str, str]:
    """The trusted public keys, by the digest that bundles name them by.

    Raises:
        PerennialError: one of them, or a trusted certificate, cannot be read.
    """
    try:
        for certificate in trusted.certificates:
            x509.load_pem_x509_certificate(certificate.encode())
        return {_key_digest(public_key): public_key for public_key in trusted.public_keys}
    except ValueError as error:
        raise PerennialError(
            f"{TRUSTED_KEYS} has a key or a certificate that cannot be read ({type(error).__name__})",
            f"set {TRUSTED_KEYS} to public keys and certificates as their owners gave them (docs/governance.md)",
        ) from error


def _key_digest(pem: str) -> str:
    """The digest by which bundles name a public key."""
    key = serialization.load_pem_public_key(pem.encode())
    content = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(content).hexdigest()


def _reason(error: Exception) -> str:
    text = str(error)
    if text.startswith("Signature mismatch"):
        # the text is a list's, which escapes quotes where a digest has both kinds
        names = re.findall(r"Hash mismatch for \\?'(.*?)\\?': Expected", text)
        names += re.findall(r"(?:Extra files found|Missing files) in model '[^']*': ([^\"']*)", text)
        return f"files are not those that were signed: {', '.join(names)[:300]}"
    if type(error).__name__ == "InvalidSignature":
        return "what it says was changed after it was made"
    if type(error).__name__ == "X509StoreContextError":
        return f"no trusted authority has issued its certificate ({text[:200]})"
    return f"it is damaged or no signature ({type(error).__name__}: {text[:200]})"
