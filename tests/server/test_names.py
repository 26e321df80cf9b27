"""The names of the server: who is in the list, and how it follows the machine."""

from collections.abc import Callable

import pytest
from cryptography import x509

from server.certs import ensure_certificates
from server.errors import ConfigurationError
from server.hosts import FAL_HOSTS
from server.names import RENEW_SECONDS, OwnNames, configured_names, server_names, tls_folder
from server.settings import Settings

MakeSettings = Callable[..., Settings]


def test_certificate_and_host_check_have_the_same_names(make_settings: MakeSettings) -> None:
    """Each name in the certificate passes the check: fal's, the machine's, the asked for."""
    settings = make_settings(
        tls_names=("Box.Example.", "*.wild.example"),
        host="10.1.2.3",
        public_url="https://images.example:8443",
    )
    folder = tls_folder(settings)
    files = ensure_certificates(folder, [*configured_names(settings), "once.example"])
    leaf = x509.load_pem_x509_certificate(files.certificate_path.read_bytes())
    held = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    names = [str(item.value) for item in held]
    assert set(names) == set(server_names(folder, configured_names(settings)))
    assert {*FAL_HOSTS, "box.example", "10.1.2.3", "images.example", "once.example"} <= set(names)
    own = OwnNames.of(settings)
    assert all(name in own for name in names)
    assert "any.wild.example" in own
    for other in ("wild.example", "a.b.wild.example", "example", "fal.ai", "10.1.2.4", "0.0.0.0"):  # noqa: S104
        assert other not in own, other


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104  (not bound to)
def test_an_address_that_stands_for_all_is_no_name(make_settings: MakeSettings, host: str) -> None:
    """A certificate in it would mean nothing."""
    assert configured_names(make_settings(host=host)) == []


def test_a_name_that_is_none_is_refused(make_settings: MakeSettings) -> None:
    """The operator hears at start which one it is."""
    with pytest.raises(ConfigurationError, match="https://box"):
        configured_names(make_settings(tls_names=("https://box",)))


def test_a_new_address_is_known_soon_and_looking_is_bounded() -> None:
    """A miss looks anew, but not for each of many requests with wrong names."""
    now, looks, listed = 0.0, 0, ["box"]

    def look() -> list[str]:
        nonlocal looks
        looks += 1
        return listed

    own = OwnNames(look, lambda: now)
    listed = ["box", "fd00::7"]
    assert "[FD00::7]" not in own
    now = RENEW_SECONDS
    assert "[FD00::7]" in own
    assert not any(f"wrong{number}" in own for number in range(100))
    assert looks == 2


def test_a_damaged_list_does_not_lock_everybody_out() -> None:
    """While a hand edits the file of names, the names known before go on to be known."""
    now, broken = 0.0, False

    def look() -> list[str]:
        if broken:
            raise ConfigurationError("half a line")
        return ["box"]

    own = OwnNames(look, lambda: now)
    now, broken = RENEW_SECONDS, True
    assert "other" not in own
    assert "box" in own
