"""A private certificate authority for this box, and the certificate it serves TLS with.

fal's Python client speaks only https, and whoever maps fal's host names to the box needs a
certificate in those names: no public authority would sign either. Nothing here uses the network.
"""

import ipaddress
import secrets
import socket
from collections.abc import Iterable, Sequence
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
from server.machine import normalise_name
from server.names import EXTRA_NAMES, remembered_names, server_names

CA_VALIDITY = timedelta(days=3650)
LEAF_VALIDITY = timedelta(days=395)
"""With the backdating 396 days: Apple's systems refuse server certificates above 398."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the PEM files lie: `certificate_path` holds the server's certificate, then the CA's."""

    ca_path: Path
    certificate_path: Path
    key_path: Path


def ensure_certificates(
    folder: Path, extra_names: Sequence[str] = (), now: datetime | None = None
) -> TlsFiles:
    """Make or renew what is missing or due in `folder`, and say where the files are.

    The CA stays until it has expired, because clients have it installed. The server's
    certificate is issued anew within 30 days of its end, or when it lacks a name of this machine
    or of `extra_names` (DNS names or IP addresses), which later calls remember. `now` must have a
    time zone. Raises `ConfigurationError` for a name that is neither, for a CA that cannot be
    read, and when a certificate is due but the CA's key has been taken away.
    """
    now = now or datetime.now(UTC)
    extra = [normalise_name(name) for name in extra_names]
    files = TlsFiles(folder / "ca.pem", folder / "server.pem", folder / "server-key.pem")
    with locked(folder):
        _remember(folder, extra)
        names = _subject_names(server_names(folder))
        ca = load_ca(files.ca_path)
        if ca is None or now >= ca.not_valid_after_utc:
            authority = _make_ca(now)
            write_durable(folder / "ca-key.pem", key_pem(authority.key))
            write_durable(files.ca_path, pem_of([authority.certificate]), 0o644)
            ca = authority.certificate
        if not _is_current(files, ca, names, now):
            key = ec.generate_private_key(ec.SECP256R1())
            leaf = _make_leaf(load_authority(folder, ca), key, names, now)
            # Key first: a crash between the two leaves a pair that does not match, which the
            # next start notices, as it does for the CA, whose certificate is missing then.
            write_durable(files.key_path, key_pem(key))
            write_durable(files.certificate_path, pem_of([leaf, ca]), 0o644)
    return files


def _subject_names(names: Iterable[str]) -> list[x509.GeneralName]:
    """Turn normalised names into what certificates hold, each once."""
    found: list[x509.GeneralName] = []
    for name in dict.fromkeys(names):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _make_ca(now: datetime) -> Authority:
    """Make a CA that can sign server certificates and nothing else.

    It carries no name constraints, although clients are asked to trust it. A list of permitted
    names would have to hold every name and address this box will ever have, or a move to another
    network would mean a new CA on every client; and several verifiers ignore constraints on a
    root. What limits a stolen key instead: it makes server certificates only (extended key
    usage), no further CAs (path length), and clients are told to trust it for one program
    (`SSL_CERT_FILE`), not in the system's store.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    # A different name for each CA: stores find issuers by name, and one client may trust two boxes.
    label = f"flux2-serve {socket.gethostname()[:32]} {secrets.token_hex(4)}"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, label)])
    usage = key_usage(digital_signature=False, certificate_signing=True)
    certificate = (
        certificate_builder(subject, subject, key.public_key(), now, now + CA_VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def _make_leaf(
    ca: Authority,
    key: ec.EllipticCurvePrivateKey,
    names: Iterable[x509.GeneralName],
    now: datetime,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "flux2-serve")])
    end = min(now + LEAF_VALIDITY, ca.certificate.not_valid_after_utc)
    issuer_key = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    authority_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key.value)
    usage = key_usage(digital_signature=True, certificate_signing=False)
    return (
        certificate_builder(subject, ca.certificate.subject, key.public_key(), now, end)
        .add_extension(authority_id, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ca.key, hashes.SHA256())
    )


def _is_current(
    files: TlsFiles, ca: x509.Certificate, names: Iterable[x509.GeneralName], now: datetime
) -> bool:
    """Whether the server's certificate can stay.

    Its start is not looked at: on a box whose clock went back, a certificate made by that clock
    would have ended once the clock is right again, while the one that is there is fine.
    """
    try:
        leaf = x509.load_pem_x509_certificate(files.certificate_path.read_bytes())
        key = serialization.load_pem_private_key(files.key_path.read_bytes(), None)
        leaf.verify_directly_issued_by(ca)
        held = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return (
        key.public_key() == leaf.public_key()
        and leaf.not_valid_after_utc - now > RENEW_BEFORE
        and set(names) <= set(held)
    )


def _remember(folder: Path, names: Sequence[str]) -> None:
    """Add `names` to those in the folder's file.

    Without this, the renewal at some later start would forget what the operator asked for once.
    """
    known = remembered_names(folder)
    all_names = list(dict.fromkeys([*known, *names]))
    if all_names != known:
        write_durable(folder / EXTRA_NAMES, "".join(f"{name}\n" for name in all_names).encode())
