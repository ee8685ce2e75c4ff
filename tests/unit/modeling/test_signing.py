"""Signatures of versions: a good one loads, and whatever somebody changes is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from perennial.cli import terminal
from perennial.cli.app import app
from perennial.core import signing_keys
from perennial.core.errors import ArtifactError, LedgerError, PerennialError
from perennial.lifecycle import verification
from perennial.modeling import registry, training_records
from perennial.modeling.signing import _bundles, versions
from perennial.modeling.signing.versions import SignedFiles
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind
from perennial.storage.ledger_table import chain
from perennial.training.runs import signature

FILES = {"model.ubj": "ab" * 32, "spec.json": "cd" * 32}
RECORDED = "2026-06-01T00:00:00Z"
LATER = "9999-01-01T00:00:00Z"


@pytest.fixture
def local_keys(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The key pair of a local stack; versions of every age must be signed."""
    for name in (
        "PERENNIAL_SIGNING_KEY", "PERENNIAL_SIGNING_CERTIFICATE", "PERENNIAL_TRUSTED_KEYS", "PERENNIAL_SIGNED_SINCE"
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    assert signing_keys.make_local_keys(empty_home)
    return empty_home / "signing"


def files(**changes: Any) -> SignedFiles:
    return SignedFiles(**{"model": "toy", "version": "7", "run_id": "r1", "digests": FILES, "recorded_at": RECORDED}
                       | changes)  # fmt: skip


def signed(run_id: str = "r1") -> str:
    bundle = versions.sign("toy", run_id, FILES)
    assert bundle is not None
    return bundle


def refusal(bundle: str | None, **changes: Any) -> str:
    with pytest.raises(ArtifactError) as caught:
        versions.verify(files(**changes), lambda _: bundle)
    assert "model toy: " in str(caught.value) and "version 7" in caught.value.cause
    return caught.value.cause


def block(kind: str) -> str:
    """A PEM block that holds no key."""
    return f"-----BEGIN {kind}-----\nxx\n-----END {kind}-----"


def pem(key: ec.EllipticCurvePrivateKey) -> tuple[str, str]:
    """The private and the public key."""
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private.decode(), public.decode()


def test_without_keys_nothing_is_signed_or_refused(empty_home: Path) -> None:
    assert versions.sign("toy", "r1", FILES) is None
    versions.require_key("toy")
    versions.verify(files(), lambda _: pytest.fail("no signature is needed"))


def test_the_keys_of_a_local_stack_are_made_once_and_readable_by_their_owner_only(local_keys: Path) -> None:
    before = {path.name: path.read_bytes() for path in local_keys.iterdir()}
    assert not signing_keys.make_local_keys(local_keys.parent)
    assert {path.name: path.read_bytes() for path in local_keys.iterdir()} == before
    assert set(before) == {"private.pem", "public.pem", "since.txt"}
    assert (local_keys / "private.pem").stat().st_mode & 0o777 == 0o600
    assert local_keys.stat().st_mode & 0o777 == 0o700


def test_a_signature_is_verified_once_and_again_for_other_keys(local_keys: Path) -> None:
    bundle, fetched = signed(), []

    def fetch(again: bool) -> str:
        fetched.append(again)
        return bundle

    versions.verify(files(), fetch)
    versions.verify(files(), fetch)
    versions._verified.clear()  # as in another process
    versions.verify(files(), fetch)
    assert fetched == [False]
    versions.verify(files(), fetch, again=True)
    assert fetched == [False, True]
    (local_keys / "public.pem").write_text(pem(ec.generate_private_key(ec.SECP256R1()))[1])
    assert "made with another key than those that are trusted" in refusal(bundle)


def test_a_damaged_copy_of_this_machine_is_replaced(local_keys: Path) -> None:
    bundle = signed()
    versions.verify(files(), lambda again: bundle if again else "{}")


@pytest.mark.parametrize("name", FILES)
def test_another_file_is_refused(local_keys: Path, name: str) -> None:
    other = FILES | {name: "ee" * 32}
    assert refusal(signed(), digests=other).endswith(f"files are not those that were signed: {name}")


def test_a_file_too_many_or_too_few_is_refused(local_keys: Path) -> None:
    bundle = signed()
    assert "not those that were signed: more.json" in refusal(
        bundle, digests=FILES | {"more.json": "ee" * 32}
    )
    assert "not those that were signed: spec.json" in refusal(bundle, digests={"model.ubj": "ab" * 32})


def test_the_signature_of_another_version_is_refused(local_keys: Path) -> None:
    assert refusal(signed("r2")).endswith("it is the signature of another version")
    assert refusal(signed(), model="toy", run_id="r3").endswith("it is the signature of another version")


def record(version: str, run_id: str) -> None:
    """Record a training, and a decision after it."""
    evidence = {"run_id": run_id, **training_records.evidence("m-1", {}, FILES)}
    for kind in (LedgerKind.TRAINING, LedgerKind.PROMOTION):
        ledger.append("toy", kind=kind, decision=Decision.ACCEPTED, reason="", actor="gate", model_version=version,
                      evidence=evidence)  # fmt: skip


@pytest.fixture
def earlier_version(empty_home: Path) -> Iterator[None]:
    """Version 7, recorded before the keys were made."""
    record("7", "r1")
    assert signing_keys.make_local_keys(empty_home, ledger.last_records)
    yield
    versions._verified.clear()


def test_a_version_that_the_ledger_had_before_the_keys_needs_no_signature(earlier_version: None) -> None:
    versions.verify(files(), lambda _: None)
    versions._verified.clear()
    versions.verify(files(), lambda _: pytest.fail("it was asked for twice"))
    assert "no signature" in refusal(None, digests=FILES | {"spec.json": "ee" * 32})
    assert "no signature" in refusal(None, run_id="r2")
    assert "another version" in refusal(signed("r2"), run_id="r3")


def test_a_backdated_record_needs_a_signature(earlier_version: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by somebody who may write the lake, whose record has right hashes and a time before the keys."""
    monkeypatch.setattr(ledger, "utc_now", lambda: "2000-01-01T00:00:00Z")
    record("8", "r8")
    assert ledger.verify("toy") == 4
    with pytest.raises(ArtifactError, match="version 8 has no signature"):
        versions.verify(files(version="8", run_id="r8", recorded_at="2000-01-01T00:00:00Z"), lambda _: None)
    versions.verify(files(), lambda _: None)


@pytest.mark.parametrize("repaired", [False, True], ids=["edited", "with right hashes"])
def test_an_earlier_record_that_was_changed_needs_a_signature(earlier_version: None, repaired: bool) -> None:
    from deltalake import DeltaTable, write_deltalake

    table = DeltaTable(ledger.uri()).to_pyarrow_table()
    rows = sorted(table.to_pylist(), key=lambda row: row["sequence"])
    rows[0]["evidence"] = rows[0]["evidence"].replace("r1", "r9")
    for row, earlier in zip(rows, [None, *rows], strict=False) if repaired else ():
        row["previous"] = earlier["hash"] if earlier else ledger.GENESIS
        row["hash"] = chain.row_hash(row)
    changed = pa.Table.from_pylist(rows, table.schema)
    write_deltalake(ledger.uri(), changed, mode="overwrite", partition_by=["model"])
    assert "no signature" in refusal(None, run_id="r9")


def test_without_a_ledger_before_the_keys_each_version_needs_a_signature(local_keys: Path) -> None:
    assert (local_keys / "since.txt").read_text() == ""
    record("7", "r1")
    assert "version 7 has no signature (model.sig)" in refusal(None, recorded_at="2000-01-01T00:00:00Z")


def test_the_chain_before_the_keys_is_read_once_for_all_versions(
    earlier_version: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions.verify(files(), lambda _: None, again=True)
    monkeypatch.setattr(ledger, "iterate", lambda _: pytest.fail("the chain was read again"))
    versions.verify(files(), lambda _: None, again=True)
    assert "no signature" in refusal(None, run_id="r8")


def test_a_key_that_is_a_file_is_not_copied(local_keys: Path, tmp_path: Path) -> None:
    key = signing_keys.signing_key()
    assert key is not None and key.path == str(local_keys / "private.pem")
    _bundles.sign("toy:r1", FILES, key, datetime.now(UTC), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["bundle.json"]
    _bundles.sign("toy:r1", FILES, replace(key, path=""), datetime.now(UTC), tmp_path)
    assert (tmp_path / "private.pem").stat().st_mode & 0o777 == 0o600


def test_the_list_of_verified_versions_grows_only_with_versions(local_keys: Path) -> None:
    bundle = signed()
    for _ in range(3):
        versions.verify(files(), lambda _: bundle, again=True)
    assert len((local_keys.parent / "cache" / "verified" / "signatures.txt").read_text().split()) == 1


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(data=st.data())
def test_a_changed_statement_or_signature_is_refused(local_keys: Path, data: Any) -> None:
    content = json.loads(signed())
    envelope = content["dsseEnvelope"]
    owner, key = data.draw(st.sampled_from([(envelope, "payload"), (envelope["signatures"][0], "sig")]))
    raw = bytearray(base64.b64decode(owner[key]))
    raw[int(data.draw(st.floats(0, 0.999)) * len(raw))] ^= 1 << data.draw(st.integers(0, 7))
    owner[key] = base64.b64encode(raw).decode()
    assert "the signature of version 7 is refused: " in refusal(json.dumps(content))


@pytest.mark.parametrize(
    "bundle", ["", "{}", "[]", "null", '{"verificationMaterial": {}}', "\ufffd", "x" * 2000]
)
def test_what_is_no_signature_is_refused(local_keys: Path, bundle: str) -> None:
    assert "it is damaged or no signature" in refusal(bundle)


@pytest.fixture
def authority(local_keys: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Configures a certificate that an authority has issued, and trusts the authority."""

    def certificate(name: str, key: Any, issuer: str, signer: Any, days: tuple[int, int], ca: bool) -> str:
        today = datetime.now(UTC)
        usage = x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(today + timedelta(days[0]))
            .not_valid_after(today + timedelta(days[1]))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(usage, critical=True)
            .sign(signer, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM).decode()

    def configure(*, days: tuple[int, int] = (-10, 10), trusted: bool = True) -> None:
        root, key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        monkeypatch.setenv("PERENNIAL_SIGNING_KEY", pem(key)[0])
        monkeypatch.setenv(
            "PERENNIAL_SIGNING_CERTIFICATE", certificate("signer", key, "root", root, days, False)
        )
        path = local_keys / "authority.pem"
        signer = root if trusted else other
        path.write_text(certificate("root", signer, "root", signer, (-1000, 1000), True))
        monkeypatch.setenv("PERENNIAL_TRUSTED_KEYS", str(path))

    return configure


def stamp(days: int) -> str:
    return (datetime.now(UTC) + timedelta(days)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_certificate_of_a_trusted_authority_is_accepted_while_it_was_valid(
    authority: Callable[..., None],
) -> None:
    authority()
    versions.require_key("toy")
    bundle = signed()
    versions.verify(files(recorded_at=stamp(0)), lambda _: bundle)
    assert "its certificate is valid from" in refusal(bundle, recorded_at=stamp(11))
    assert "its certificate is valid from" in refusal(bundle, recorded_at=stamp(-11))


def test_a_certificate_that_is_younger_than_the_version_signs_nothing(authority: Callable[..., None]) -> None:
    """It would be refused by each load: the champion could not be used any more."""
    authority(days=(-10, 10))
    with pytest.raises(PerennialError, match="cannot be signed: its certificate is valid from") as caught:
        signature.store(None, "toy", "r1", FILES, stamp(-11))  # type: ignore[arg-type]  # is not reached
    assert "a key without a certificate" in caught.value.remedy
    assert versions.sign("toy", "r1", FILES, stamp(-9))


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ({"days": (-10, -1)}, "cannot be signed: its certificate is valid from"),
        ({"trusted": False}, "would be refused: no trusted authority has issued its certificate"),
    ],
)
def test_a_certificate_that_is_expired_or_not_trusted_stops_a_training_before_its_work(
    authority: Callable[..., None], problem: dict[str, Any], message: str
) -> None:
    authority(**problem)
    with pytest.raises(PerennialError, match=message):
        versions.require_key("toy")


def test_a_certificate_is_refused_where_only_keys_are_trusted(
    authority: Callable[..., None], local_keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority()
    bundle = signed()
    monkeypatch.setenv("PERENNIAL_TRUSTED_KEYS", str(local_keys / "public.pem"))
    assert "made with a certificate, and no certificate is trusted" in refusal(bundle)


def test_keys_may_be_several_files_or_their_content(
    local_keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = pem(ec.generate_private_key(ec.SECP384R1()))
    (local_keys / "second.pem").write_text(public)
    monkeypatch.setenv("PERENNIAL_SIGNING_KEY", private)
    both = os.pathsep.join([str(local_keys / "public.pem"), str(local_keys / "second.pem")])
    monkeypatch.setenv("PERENNIAL_TRUSTED_KEYS", both)
    bundle = signed()
    versions.verify(files(), lambda _: bundle)
    monkeypatch.setenv("PERENNIAL_TRUSTED_KEYS", public)
    versions.verify(files(), lambda _: bundle, again=True)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PERENNIAL_SIGNING_KEY": "no-such-file"}, "PERENNIAL_SIGNING_KEY names a file that cannot be read"),
        ({"PERENNIAL_TRUSTED_KEYS": "no-such-file"}, "PERENNIAL_TRUSTED_KEYS names a file that cannot be read"),
        ({"PERENNIAL_SIGNING_KEY": "-----BEGIN X"}, "PERENNIAL_SIGNING_KEY is not in PEM format"),
        ({"PERENNIAL_SIGNING_CERTIFICATE": block("CERTIFICATE")},
         "PERENNIAL_SIGNING_CERTIFICATE is set, and PERENNIAL_SIGNING_KEY is not"),
        ({"PERENNIAL_SIGNED_SINCE": "2026-01-01"}, "PERENNIAL_SIGNED_SINCE is not a list of last records"),
        ({"PERENNIAL_SIGNED_SINCE": "toy=3:abc"}, "PERENNIAL_SIGNED_SINCE is not a list of last records"),
        *(({"PERENNIAL_TRUSTED_KEYS": block(kind)}, "PERENNIAL_TRUSTED_KEYS has a key or a certificate that cannot be")
          for kind in ("PUBLIC KEY", "CERTIFICATE")),
        ({"PERENNIAL_SIGNING_KEY": block("PRIVATE KEY")}, "the version cannot be signed"),
        ({"PERENNIAL_SIGNING_KEY": block("ENCRYPTED PRIVATE KEY")}, "encrypted keys cannot be used"),
        ({"PERENNIAL_SIGNING_KEY": "pkcs11:token=t?pin-value=4711"}, "the version cannot be signed"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_named_and_not_quoted(
    local_keys: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PerennialError, match=message) as caught:
        versions.require_key("toy")
    assert "4711" not in str(caught.value) and "xx" not in str(caught.value)


def test_a_training_without_the_key_fails_where_signatures_are_required(local_keys: Path) -> None:
    (local_keys / "private.pem").unlink()
    with pytest.raises(PerennialError, match="could not be signed, and would be refused"):
        versions.require_key("toy")


def test_a_key_that_is_not_trusted_fails_before_the_training(
    local_keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_SIGNING_KEY", pem(ec.generate_private_key(ec.SECP256R1()))[0])
    with pytest.raises(PerennialError, match="the signature would be refused: it was made with another key"):
        versions.require_key("toy")


# --- registered versions


@pytest.fixture
def signed_version(world: Any, mlflow_folder: Path) -> Iterator[tuple[registry.ModelVersion, Path]]:
    """The champion with a signature, and the folder of its files in MLflow's store; both are restored afterwards."""
    signing_keys.make_local_keys(world.home)
    champion = registry.get_champion(world.spec)
    assert champion is not None
    folder = next((mlflow_folder / "artifacts").rglob(f"{champion.run_id}/artifacts/perennial"))
    with pytest.raises(ArtifactError, match="version 1 has no signature"):
        registry.load_model(champion)
    version = signature.sign_version(world.spec.name, champion.version)
    yield version, folder
    (folder / "model.sig").unlink(missing_ok=True)


def test_a_signed_version_loads_and_openssf_verifies_its_files(
    signed_version: tuple[registry.ModelVersion, Path], world: Any, tmp_path: Path, artifact: Any
) -> None:
    """Also by the library's own interface, which hashes a folder."""
    import shutil

    from model_signing import verifying

    version, folder = signed_version
    assert registry.load_model(version).booster.num_boosted_rounds() > 0
    assert registry.load_spec(version).name == world.spec.name
    shutil.copytree(folder, tmp_path / "files")
    shutil.copy(artifact(world.spec, version.version), tmp_path / "files")
    bundle = (tmp_path / "files" / "model.sig").rename(tmp_path / "model.sig")
    config = verifying.Config().use_elliptic_key_verifier(public_key=world.home / "signing" / "public.pem")
    config.verify(tmp_path / "files", bundle)
    assert not verification.verify_model(world.spec, actor="test")["findings"]


def test_a_swapped_file_is_refused_even_if_the_ledger_has_its_digest(
    signed_version: tuple[registry.ModelVersion, Path], world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by somebody who can write the lake as well as MLflow."""
    version, folder = signed_version
    record = training_records.find(version.name, version.version, version.run_id)
    assert record is not None
    spec = folder / "spec.json"
    before = spec.read_bytes()
    try:
        spec.write_bytes(before + b" ")
        forged = {**record.digests, "spec.json": hashlib.sha256(spec.read_bytes()).hexdigest()}
        monkeypatch.setitem(record.digests, "spec.json", forged["spec.json"])
        with pytest.raises(
            ArtifactError, match=r"signature of version 1 is refused: files .* signed: spec\.json"
        ):
            registry.load_spec(version)
        with pytest.raises(ArtifactError, match="signature of version 1 is refused"):
            registry.load_model(version)
    finally:
        spec.write_bytes(before)


def test_verify_names_versions_without_a_good_signature(
    signed_version: tuple[registry.ModelVersion, Path], world: Any
) -> None:
    version, folder = signed_version
    (folder / "model.sig").write_text("{}")
    findings = verification.verify_model(world.spec, actor="test")["findings"]
    assert [f.split(":")[0] for f in findings] == ["the signature of version 1 is refused"]
    (folder / "model.sig").unlink()
    findings = verification.verify_model(world.spec, actor="test")["findings"]
    assert findings == ["version 1 has no signature (model.sig)"]
    with pytest.raises(ArtifactError, match="version 1 has no signature"):
        registry.load_model(version, fresh=True)


def test_a_version_whose_file_was_changed_is_not_signed(
    signed_version: tuple[registry.ModelVersion, Path], world: Any
) -> None:
    version, folder = signed_version
    (folder / "model.sig").unlink()
    before = (folder / "spec.json").read_bytes()
    try:
        (folder / "spec.json").write_bytes(before + b" ")
        with pytest.raises(ArtifactError, match=r"spec\.json of version 1 in MLflow .* changed or damaged"):
            signature.sign_version(world.spec.name, version.version)
    finally:
        (folder / "spec.json").write_bytes(before)
    assert not (folder / "model.sig").exists()


def test_the_command_signs_what_a_whole_ledger_says_and_records_who_did(
    signed_version: tuple[registry.ModelVersion, Path], world: Any
) -> None:
    version, folder = signed_version
    (folder / "model.sig").unlink()
    done = CliRunner().invoke(app, ["sign", version.name, version.version])
    assert done.exit_code == 0, done.output
    last = ledger.records(version.name)[-1]
    assert (last["kind"], last["decision"], last["model_version"]) == ("signature", "signed", version.version)
    assert last["actor"] == terminal.user() and last["evidence"]["run_id"] == version.run_id
    (folder / "model.sig").unlink()
    head = Path(ledger.head_uri(version.name))
    head.write_text(json.dumps({"sequence": last["sequence"] + 1, "hash": "0" * 64}))
    refused = CliRunner().invoke(app, ["sign", version.name, version.version])
    assert isinstance(refused.exception, LedgerError), refused.output
    assert "was not signed, because its ledger cannot be believed" in refused.exception.cause
    assert not (folder / "model.sig").exists()


@pytest.mark.parametrize("digest", [b"\x01", b"\x01'", b'\x01"', b"\x01'\""])
def test_a_changed_file_is_named_whatever_quotes_its_digest_has(digest: bytes) -> None:
    differences = [f"Hash mismatch for 'spec.json': Expected '{digest!r}', Actual '{digest!r}'"]
    reason = _bundles._reason(ValueError(f"Signature mismatch: {differences}"))
    assert reason == "files are not those that were signed: spec.json"
