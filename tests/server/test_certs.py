"""The box's own CA and certificate: real handshakes, renewal, permissions, broken folders."""

import os
import socket
import ssl
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from server.certs import TlsFiles, ensure_certificates
from server.errors import ConfigurationError
from server.hosts import FAL_HOSTS
from server.machine import machine_names

NOW = datetime(2030, 5, 17, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Name a folder that does not exist yet."""
    return tmp_path / "data" / "tls"


@pytest.fixture
def permissive_umask() -> Iterator[None]:
    """Let new files be as open as their maker asks, so that modes cannot be right by luck."""
    before = os.umask(0)
    yield
    os.umask(before)


def load(path: Path) -> x509.Certificate:
    """Read the first certificate of a PEM file."""
    return x509.load_pem_x509_certificate(path.read_bytes())


def contents(folder: Path) -> dict[str, bytes]:
    """Read the whole folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shake_hands(files: TlsFiles, name: str, trusted: Path | None = None) -> None:
    """Do a TLS handshake between two real sockets, the client as strict as Python 3.13 is.

    Raises `ssl.SSLCertVerificationError` when the client refuses.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate_path, files.key_path)
    client = ssl.create_default_context(cafile=trusted or files.ca_path)
    client.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    ours, theirs = socket.socketpair()

    def accept() -> None:
        # The client says what was wrong; here its refusal is only a connection that ends.
        with theirs, suppress(OSError), server.wrap_socket(theirs, server_side=True):
            pass

    with ThreadPoolExecutor(1) as threads:
        threads.submit(accept)
        with ours, client.wrap_socket(ours, server_hostname=name):
            pass


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", *FAL_HOSTS])
def test_strict_client_accepts_every_fixed_name(folder: Path, name: str) -> None:
    """Clients reach the box as localhost or, through DNS or a hosts file, by fal's names."""
    shake_hands(ensure_certificates(folder), name)


def test_strict_client_accepts_machine_and_extra_names(folder: Path) -> None:
    """The machine's own names are in without being asked for; others are added on request."""
    files = ensure_certificates(folder, ["Box.Corp.Example", "10.9.8.7"])
    for name in [*machine_names(), "box.corp.example", "10.9.8.7"]:
        shake_hands(files, name)


def test_client_refuses_other_names_and_other_boxes(folder: Path, tmp_path: Path) -> None:
    """The certificate opens nothing else, and trust in one box is not trust in another."""
    files = ensure_certificates(folder)
    other = ensure_certificates(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(files, "example.com")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"self.signed|issuer"):
        shake_hands(files, "localhost", trusted=other.ca_path)


def test_profile_of_the_certificates(folder: Path) -> None:
    """The CA can sign servers only, for ten years; the leaf stays below what Apple accepts."""
    files = ensure_certificates(folder, now=NOW)
    ca, leaf = load(files.ca_path), load(files.certificate_path)
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    assert ca.not_valid_after_utc == NOW + 3650 * DAY
    assert leaf.not_valid_before_utc == ca.not_valid_before_utc == NOW - DAY
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc <= 397 * DAY
    for certificate in (ca, leaf):
        allowed = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(allowed) == [ExtendedKeyUsageOID.SERVER_AUTH]
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert isinstance(key.curve, ec.SECP256R1)


def test_two_authorities_have_two_names(tmp_path: Path) -> None:
    """Trust stores look issuers up by name, and a client may trust several boxes."""
    first, second = (load(ensure_certificates(tmp_path / name).ca_path) for name in "ab")
    assert first.subject != second.subject


def test_second_call_changes_nothing(folder: Path) -> None:
    """A restart keeps every byte."""
    ensure_certificates(folder, ["box.example"])
    before = contents(folder)
    ensure_certificates(folder)
    ensure_certificates(folder, ["BOX.example."])
    assert contents(folder) == before


def test_leaf_is_renewed_thirty_days_before_its_end(folder: Path) -> None:
    """At the limit it is new, a second earlier it is not; the CA stays through both."""
    files = ensure_certificates(folder, now=NOW)
    before = contents(folder)
    due = load(files.certificate_path).not_valid_after_utc - 30 * DAY
    ensure_certificates(folder, now=due - SECOND)
    assert contents(folder) == before
    ensure_certificates(folder, now=due)
    assert load(files.certificate_path).not_valid_after_utc > due + 390 * DAY
    assert files.key_path.read_bytes() != before["server-key.pem"]
    assert files.ca_path.read_bytes() == before["ca.pem"]


def test_expired_leaf_works_again_after_a_restart(folder: Path) -> None:
    """A box that was off for two years serves its old clients without a word to them."""
    files = ensure_certificates(folder, now=datetime.now(UTC) - 730 * DAY)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake_hands(files, "localhost")
    shake_hands(ensure_certificates(folder), "localhost")


def test_new_name_is_added_and_remembered(folder: Path) -> None:
    """What an operator asks for once survives calls and renewals that do not mention it."""
    ca = ensure_certificates(folder, ["one.example"], NOW).ca_path.read_bytes()
    ensure_certificates(folder, ["10.9.8.7"], NOW)
    files = ensure_certificates(folder, now=NOW + 390 * DAY)
    leaf = load(files.certificate_path)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert leaf.not_valid_after_utc > NOW + 700 * DAY
    assert "one.example" in names.get_values_for_type(x509.DNSName)
    assert "10.9.8.7" in map(str, names.get_values_for_type(x509.IPAddress))
    assert files.ca_path.read_bytes() == ca


def test_wrong_name_is_refused_before_anything_is_written(folder: Path) -> None:
    """A URL is not a name."""
    with pytest.raises(ConfigurationError, match="https://box"):
        ensure_certificates(folder, ["good.example", "https://box"])
    assert not folder.exists()


def test_authority_stays_to_its_last_second(folder: Path) -> None:
    """Clients have it installed; only an expired one is replaced. No leaf outlives it."""
    files = ensure_certificates(folder, now=NOW)
    before = files.ca_path.read_bytes()
    end = load(files.ca_path).not_valid_after_utc
    ensure_certificates(folder, now=end - SECOND)
    assert files.ca_path.read_bytes() == before
    assert load(files.certificate_path).not_valid_after_utc == end
    ensure_certificates(folder, now=end)
    assert load(files.ca_path).not_valid_after_utc == end + 3650 * DAY
    load(files.certificate_path).verify_directly_issued_by(load(files.ca_path))


def test_clock_that_went_back_changes_nothing(folder: Path) -> None:
    """A flat clock battery must not replace certificates that are right for everybody else."""
    ensure_certificates(folder, now=NOW)
    before = contents(folder)
    ensure_certificates(folder, now=datetime(1970, 1, 3, tzinfo=UTC))
    assert contents(folder) == before


@pytest.mark.usefixtures("permissive_umask")
def test_keys_are_readable_by_their_owner_only(folder: Path) -> None:
    """Also when a backup was restored with open modes."""
    ensure_certificates(folder, ["box.example"])
    (folder / "ca-key.pem").chmod(0o644)
    folder.chmod(0o755)
    ensure_certificates(folder)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}
    assert modes == {
        "tls": 0o700,
        "ca.pem": 0o644,
        "ca-key.pem": 0o600,
        "server.pem": 0o644,
        "server-key.pem": 0o600,
        "extra-names.txt": 0o600,
    }


@pytest.mark.parametrize("broken", ["server.pem", "server-key.pem"])
@pytest.mark.parametrize("how", ["gone", "garbage", "of another box"])
def test_broken_leaf_is_issued_anew(folder: Path, tmp_path: Path, broken: str, how: str) -> None:
    """Whatever a crash or a hand left behind, the next start serves TLS under the same CA."""
    ca = ensure_certificates(folder).ca_path.read_bytes()
    if how == "gone":
        (folder / broken).unlink()
    elif how == "garbage":
        (folder / broken).write_text("-----BEGIN CERTIFICATE-----\n")
    else:
        ensure_certificates(tmp_path / "other")
        (folder / broken).write_bytes((tmp_path / "other" / broken).read_bytes())
    files = ensure_certificates(folder)
    shake_hands(files, "localhost")
    assert files.ca_path.read_bytes() == ca


def test_new_authority_means_a_new_leaf(folder: Path) -> None:
    """Removing ca.pem is how an operator starts afresh; the old leaf would be refused by all."""
    before = ensure_certificates(folder).ca_path.read_bytes()
    (folder / "ca.pem").unlink()
    files = ensure_certificates(folder)
    assert files.ca_path.read_bytes() != before
    shake_hands(files, "localhost")


def test_authority_key_may_be_kept_elsewhere(folder: Path, tmp_path: Path) -> None:
    """Without it the server starts; when a renewal is due, the message says what is missing."""
    ensure_certificates(folder, now=NOW)
    (folder / "ca-key.pem").rename(tmp_path / "safe")
    before = contents(folder)
    ensure_certificates(folder, now=NOW)
    with pytest.raises(ConfigurationError, match=r"ca-key\.pem does not hold the key of ca\.pem"):
        ensure_certificates(folder, now=NOW + 390 * DAY)
    assert contents(folder) == before
    (tmp_path / "safe").rename(folder / "ca-key.pem")
    renewed = ensure_certificates(folder, now=NOW + 390 * DAY)
    assert load(renewed.certificate_path).not_valid_after_utc > NOW + 700 * DAY


def test_key_of_another_authority_is_refused(folder: Path, tmp_path: Path) -> None:
    """A certificate signed with it would be refused by every client, so none is made."""
    ensure_certificates(folder, now=NOW)
    ensure_certificates(tmp_path / "other", now=NOW)
    (folder / "ca-key.pem").write_bytes((tmp_path / "other" / "ca-key.pem").read_bytes())
    with pytest.raises(ConfigurationError, match="does not hold the key"):
        ensure_certificates(folder, ["new.example"], NOW)


def test_unreadable_authority_is_never_overwritten(folder: Path) -> None:
    """Replacing it would lock out every client, so a human decides."""
    files = ensure_certificates(folder)
    files.ca_path.write_text("garbage")
    with pytest.raises(ConfigurationError, match=r"ca\.pem is not a certificate"):
        ensure_certificates(folder)
    assert files.ca_path.read_text() == "garbage"


def test_callers_at_once_agree_on_one_authority(folder: Path) -> None:
    """`flux2-serve certs` beside a starting server must not mix two sets of files."""
    with ThreadPoolExecutor(6) as threads:
        made = list(
            threads.map(lambda _: ensure_certificates(folder).ca_path.read_bytes(), "abcdef")
        )
    assert len(set(made)) == 1
    shake_hands(ensure_certificates(folder), "localhost")
