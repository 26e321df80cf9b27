"""A development authority and a certificate for Content Credentials, for trying them out.

Readers of C2PA trust it only when they are told to. Pictures for the public are signed with a
certificate of an authority on C2PA's trust list, which an operator has to apply for.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.authority import (
    RENEW_BEFORE,
    Authority,
    certificate_builder,
    key_pem,
    key_usage,
    load_authority,
    load_ca,
    locked,
    pem_of,
)
from server.durable import write_durable

C2PA_FOLDER = "c2pa"
"""Of the data folder."""

CA_VALIDITY = timedelta(days=3650)
SIGNER_VALIDITY = timedelta(days=395)


@dataclass(frozen=True, slots=True)
class C2paFiles:
    """Where the PEM files lie: `certificate_path` holds the signer's certificate, then the CA's."""

    ca_path: Path
    certificate_path: Path
    key_path: Path


def ensure_c2pa_certificates(folder: Path, now: datetime | None = None) -> C2paFiles:
    """Make or renew what is missing or due in `folder`, and say where the files are.

    The CA stays until it has expired; the signer's certificate is issued anew within 30 days of
    its end. Raises `ConfigurationError` when the CA cannot be read, or its key is not there.
    """
    now = now or datetime.now(UTC)
    files = C2paFiles(folder / "ca.pem", folder / "signer.pem", folder / "signer-key.pem")
    with locked(folder):
        ca = load_ca(files.ca_path)
        if ca is None or now >= ca.not_valid_after_utc:
            authority = _make_ca(now)
            write_durable(folder / "ca-key.pem", key_pem(authority.key))
            write_durable(files.ca_path, pem_of([authority.certificate]), 0o644)
            ca = authority.certificate
        if not _is_current(files, ca, now):
            key = ec.generate_private_key(ec.SECP256R1())
            signer = _make_signer(load_authority(folder, ca), key, now)
            write_durable(files.key_path, key_pem(key))
            write_durable(files.certificate_path, pem_of([signer, ca]), 0o644)
    return files


def _name(words: str) -> x509.Name:
    """Readers show the organisation as the issuer of the picture's credentials."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "flux2-serve development"),
            x509.NameAttribute(NameOID.COMMON_NAME, words),
        ]
    )


def _make_ca(now: datetime) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name("flux2-serve C2PA development CA")
    usage = key_usage(digital_signature=False, certificate_signing=True)
    certificate = (
        certificate_builder(subject, subject, key.public_key(), now, now + CA_VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def _make_signer(ca: Authority, key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """Issue a certificate of C2PA's profile (specification 2.2, section 14.5.1).

    Its usage is that of e-mail signatures, the oldest of the usages that C2PA names: readers
    accept it without further configuration, which they do not of C2PA's own yet.
    """
    end = min(now + SIGNER_VALIDITY, ca.certificate.not_valid_after_utc)
    subject = _name("flux2-serve C2PA development signer")
    issuer_key = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    authority_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key.value)
    usage = key_usage(digital_signature=True, certificate_signing=False)
    email = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
    return (
        certificate_builder(subject, ca.certificate.subject, key.public_key(), now, end)
        .add_extension(authority_id, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(email, critical=False)
        .sign(ca.key, hashes.SHA256())
    )


def _is_current(files: C2paFiles, ca: x509.Certificate, now: datetime) -> bool:
    try:
        signer = x509.load_pem_x509_certificate(files.certificate_path.read_bytes())
        key = serialization.load_pem_private_key(files.key_path.read_bytes(), None)
        signer.verify_directly_issued_by(ca)
    except (OSError, ValueError, TypeError, InvalidSignature):
        return False
    return (
        key.public_key() == signer.public_key() and signer.not_valid_after_utc - now > RENEW_BEFORE
    )
