"""Certificates that sign Content Credentials: the user's own files, or a chain made here once.

`cryptography` is an optional package, imported when a certificate is used.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import os
import secrets
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bounds import shown
from ..errors import InputError
from ..paths import cannot, is_folder

if TYPE_CHECKING:
    from cryptography import x509

CHAIN, KEY, ROOT = "chain.pem", "key.pem", "root.pem"
"""The signer's certificate and then those that issued it; its private key; of a chain made here,
the root for those who want to trust it."""
PACKAGES = {"c2pa": "c2pa-python", "cryptography": "cryptography"}
"""By module: the package that brings it."""
PURPOSES = {
    "1.3.6.1.5.5.7.3.4": "e-mail protection",
    "1.3.6.1.5.5.7.3.36": "document signing",
    "1.3.6.1.4.1.62558.2.1": "C2PA claim signing",
}
"""Extended key usages that may sign Content Credentials."""
YEARS = 10
OWN_NAME = "AR-RAG own certificate, not publicly trusted"


@dataclass(frozen=True)
class Identity:
    """What signs."""

    chain: bytes
    """PEM, the signer's certificate first."""
    key: bytes
    """PEM, PKCS 8."""
    algorithm: str
    place: Path
    """The folder it was read from."""


def check_packages() -> None:
    """Refuse to start without the optional packages.

    Raises:
        InputError: One of them is missing or does not work here.
    """
    for module in PACKAGES:
        try:
            importlib.import_module(module)
        except (ImportError, OSError, RuntimeError) as error:
            raise InputError(
                f"Content Credentials need packages that cannot be used here ({error}); install "
                f"them with: python -m pip install {' '.join(PACKAGES.values())}"
            ) from error


def own_identity(folder: Path) -> Identity:
    """The chain made here, which is made now if there is none.

    Raises:
        InputError: It cannot be written, read or used.
    """
    check_packages()
    if not is_folder(folder):
        _make_own(folder)
    return read_identity(folder)


def read_identity(folder: Path) -> Identity:
    """The chain and the key of a folder.

    Raises:
        InputError: A file is missing, or does not fit; the sentence says which and why.
    """
    check_packages()
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    chain, key = folder / CHAIN, folder / KEY
    certificates = _parsed(chain, x509.load_pem_x509_certificates, "certificates")
    _check_private(key)
    private = _parsed(key, lambda data: serialization.load_pem_private_key(data, None), "a key")
    _check_chain(chain, certificates)
    if certificates[0].public_key() != private.public_key():
        raise InputError(f"{key} does not belong to the first certificate of {chain}; replace one")
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return Identity(
        b"".join(one.public_bytes(encoding) for one in certificates),
        private.private_bytes(encoding, form, serialization.NoEncryption()),
        _algorithm(private, key),
        folder,
    )


def _parsed(path: Path, parse: Any, what: str) -> Any:
    """What a PEM file holds."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"there is no {path}; put {CHAIN} (your certificate first, then its issuers) and {KEY} "
            "there, or choose another content_credentials"
        ) from error
    except OSError as error:
        raise cannot("read", path, error) from error
    try:
        return parse(data)
    except (ValueError, TypeError) as error:  # TypeError: it is encrypted
        reason = str(error).splitlines()[0][:100] if str(error) else "unknown format"
        raise InputError(
            f"{path} does not hold {what} in PEM without a password ({reason}); convert it"
        ) from error


def _check_private(key: Path) -> None:
    """Refuse a key that other users of the machine can read. Windows has no such modes."""
    try:
        mode = stat.S_IMODE(key.stat().st_mode)
    except OSError:
        return  # reading it says why
    if os.name == "posix" and mode & 0o077:
        raise InputError(f"{key} has mode {mode:o}, which lets others read it; chmod 600 it")


def _check_chain(path: Path, chain: Sequence[x509.Certificate]) -> None:
    """Refuse what the C2PA library refuses, with what to do about it."""
    from cryptography.exceptions import InvalidSignature

    now, first = datetime.now(timezone.utc), chain[0]
    for one in chain:
        if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
            raise InputError(
                f"the certificate {shown(one.subject.rfc4514_string())} in {path} is valid from "
                f"{one.not_valid_before_utc:%Y-%m-%d} to {one.not_valid_after_utc:%Y-%m-%d} only; "
                "replace it"
            )
    if first.issuer == first.subject:
        raise InputError(
            f"the first certificate of {path} is self-signed, which C2PA does not allow; put one "
            "there that a root or an intermediate has issued"
        )
    for one, issuer in pairwise(chain):
        try:
            one.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise InputError(
                f"the certificates of {path} do not follow each other; put the signer's first and "
                "the issuer of each after it"
            ) from error
    if not _purposes(first) & PURPOSES.keys():
        raise InputError(
            f"the first certificate of {path} is not meant for {', '.join(PURPOSES.values())} "
            "(extended key usage); use one that is meant for one of them"
        )


def _purposes(certificate: x509.Certificate) -> set[str]:
    from cryptography import x509

    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except (x509.ExtensionNotFound, ValueError):
        return set()
    return {purpose.dotted_string for purpose in usage.value}


def _algorithm(key: Any, path: Path) -> str:
    """C2PA's name of the signature algorithm of a private key."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in curves:
        return curves[key.curve.name]
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise InputError(
        f"{path} holds a key of a kind that C2PA does not sign with; use P-256, P-384, P-521, "
        "Ed25519, or RSA of 2048 bits or more"
    )


def _make_own(folder: Path) -> None:
    """Make a root, and a certificate that it issues. The root's key is not kept, so nobody can
    issue another one. The folder appears when it is whole."""
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir(mode=0o700)
        for name, data in _own_files().items():
            with open(os.open(part / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as f:
                f.write(data)
        part.rename(folder)
    except OSError as error:
        if not is_folder(folder):  # else another process was faster
            raise cannot("write", folder, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _own_files() -> dict[str, bytes]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    constraints, usage = x509.BasicConstraints, x509.ExtendedKeyUsage
    root = (
        _draft("root", root_key.public_key(), root_key.public_key())
        .add_extension(constraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    signer = (
        _draft("signer", key.public_key(), root_key.public_key())
        .add_extension(constraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(usage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    pem_root = root.public_bytes(encoding)
    return {
        CHAIN: signer.public_bytes(encoding) + pem_root,
        ROOT: pem_root,
        KEY: key.private_bytes(encoding, form, serialization.NoEncryption()),
    }


def _draft(role: str, public: Any, issuer: Any) -> x509.CertificateBuilder:
    """A certificate of the own chain, without its uses."""
    from cryptography import x509

    start = datetime.now(timezone.utc) - timedelta(days=1)  # clocks differ
    subject_id = x509.SubjectKeyIdentifier.from_public_key(public)
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer)
    return (
        x509.CertificateBuilder(_own_name("root"), _own_name(role), public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=365 * YEARS))
        .add_extension(subject_id, critical=False)
        .add_extension(issuer_id, critical=False)
    )


def _own_name(role: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, OWN_NAME)
    return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, f"AR-RAG own {role}")])


def _key_usage(**uses: bool) -> x509.KeyUsage:
    from cryptography import x509

    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
    names += ("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{**dict.fromkeys(names, False), **uses})
