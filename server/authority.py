"""What every private authority of this box needs: builders, its key, and a folder of its own."""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.errors import ConfigurationError

BACKDATE = timedelta(days=1)
"""How far before now a certificate begins, for clients whose clock is slow."""

RENEW_BEFORE = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: its certificate, and the key that signs others."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def certificate_builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    """Begin a certificate that holds from a day ago to `end`."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def key_usage(*, digital_signature: bool, certificate_signing: bool) -> x509.KeyUsage:
    """Return a key usage of signatures, or of certificates, and of nothing else."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=certificate_signing,
        crl_sign=certificate_signing,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def load_ca(path: Path) -> x509.Certificate | None:
    """Read the CA's certificate, None when there is none. Raises `ConfigurationError`."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigurationError(
            f"{path} is not a certificate; restore it, or remove it to start a new CA"
        ) from error


def load_authority(folder: Path, ca: x509.Certificate) -> Authority:
    """Load the CA's key. A missing one is no reason for a new CA: it may be kept elsewhere.

    Raises `ConfigurationError`.
    """
    path = folder / "ca-key.pem"
    key = None
    with contextlib.suppress(OSError, ValueError, TypeError):
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != ca.public_key():
        raise ConfigurationError(
            f"a certificate must be renewed, but {path} does not hold the key of "
            "ca.pem; restore it, or remove ca.pem to start a new CA that clients must install"
        )
    return Authority(ca, key)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process, such as `flux2-serve certs` beside a starting server, out."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        for key in folder.glob("*-key.pem"):
            key.chmod(0o600)  # as they may not be after a restored backup
    finally:
        os.close(descriptor)


def pem_of(certificates: Iterable[x509.Certificate]) -> bytes:
    """Write certificates one after the other."""
    return b"".join(item.public_bytes(serialization.Encoding.PEM) for item in certificates)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Write a private key, without a password."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
