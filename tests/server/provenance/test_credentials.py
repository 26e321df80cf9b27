"""Content Credentials: read by the official reader, and refused where they should be."""

import io
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from server.c2pa_certs import C2paFiles, ensure_c2pa_certificates
from server.errors import ConfigurationError
from server.images import encode
from server.marking import check_marking
from server.provenance.credentials import LOCAL_ONLY, Credentials, check
from server.provenance.markers import Marking
from server.provenance.words import SOURCE_TYPE, software_version
from server.schemas import OutputFormat
from server.settings import Settings

c2pa = pytest.importorskip("c2pa", reason="the extra flux2-serve[c2pa] is not installed")

FORMATS = list(OutputFormat)


@pytest.fixture
def files(tmp_path: Path) -> C2paFiles:
    """Make a development authority and its signer."""
    return ensure_c2pa_certificates(tmp_path / "c2pa")


def credentials_of(files: C2paFiles) -> Credentials:
    """Return what signs with the signer's certificate."""
    return Credentials(certificate=files.certificate_path, key=files.key_path)


def signed(files: C2paFiles, output_format: OutputFormat) -> bytes:
    """Return a file with credentials beside the marker."""
    marking = Marking(model="FLUX.2-dev", credentials=credentials_of(files))
    return encode(picture(), output_format, marking).data


def picture() -> Image.Image:
    """Return a picture that is the same every time."""
    return Image.linear_gradient("L").convert("RGB")


def read(data: bytes, content_type: str, *anchors: Path) -> Any:
    """Read the file as a stranger would who trusts these authorities."""
    trust = {"trust": {"trust_anchors": "".join(path.read_text() for path in anchors)}}
    context = c2pa.Context.from_dict({**LOCAL_ONLY, **(trust if anchors else {})})
    return c2pa.Reader(content_type, io.BytesIO(data), context=context)


def codes(reader: Any) -> set[str]:
    """Return the codes of what the reader found wrong."""
    found = reader.get_validation_results()["activeManifest"]["failure"]
    return {item["code"] for item in found}


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_official_reader_trusts_it(files: C2paFiles, output_format: OutputFormat) -> None:
    """With the development CA as anchor it is valid and says what made the picture."""
    reader = read(signed(files, output_format), f"image/{output_format}", files.ca_path)
    assert reader.get_validation_state() == "Trusted"
    assert codes(reader) == set()
    manifest = reader.get_active_manifest()
    (action,) = manifest["assertions"][0]["data"]["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"] == SOURCE_TYPE
    generator = manifest["claim_generator_info"][0]
    assert (generator["name"], generator["version"]) == ("flux2-serve", software_version())
    assert reader.get_remote_url() is None
    assert reader.is_embedded()


def test_others_do_not_trust_it(files: C2paFiles, tmp_path: Path) -> None:
    """Without the CA, or with another one, it is a signature by nobody."""
    other = ensure_c2pa_certificates(tmp_path / "other")
    data = signed(files, OutputFormat.PNG)
    for anchors in ((), (other.ca_path,)):
        assert "signingCredential.untrusted" in codes(read(data, "image/png", *anchors))


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_changed_picture_does_not_validate(files: C2paFiles, output_format: OutputFormat) -> None:
    """One bit of the pixels' data is enough."""
    data = bytearray(signed(files, output_format))
    pixels = data.index(b"VP8 ") if output_format is OutputFormat.WEBP else len(data)
    data[pixels + (100 if output_format is OutputFormat.WEBP else -40)] ^= 1
    reader = read(bytes(data), f"image/{output_format}", files.ca_path)
    assert reader.get_validation_state() == "Invalid"
    assert "assertion.dataHash.mismatch" in codes(reader)


@pytest.mark.parametrize("output_format", FORMATS)
def test_pixels_and_marker_stay(files: C2paFiles, output_format: OutputFormat) -> None:
    """The manifest comes beside what is there already."""
    plain = Image.open(io.BytesIO(encode(picture(), output_format).data))
    image = Image.open(io.BytesIO(signed(files, output_format)))
    assert image.tobytes() == plain.tobytes()
    assert image.getexif()[305].startswith("AI generated")


def test_signing_needs_no_network(files: C2paFiles) -> None:
    """In a namespace without any interface it signs and reads as elsewhere."""
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed")
    way = next(
        (
            way
            for way in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"])
            if subprocess.run([*way, "true"], capture_output=True, check=False).returncode == 0
        ),
        None,
    )
    if not way:
        pytest.skip("no network namespace can be made here")
    script = (
        "import sys; from pathlib import Path\n"
        "from server.provenance.credentials import Credentials, check\n"
        "check(Credentials(certificate=Path(sys.argv[1]), key=Path(sys.argv[2])))\n"
    )
    paths = [str(files.certificate_path), str(files.key_path)]
    command = [*way, sys.executable, "-c", script, *paths]
    subprocess.run(command, check=True, timeout=60)


def test_the_files_of_the_authority_stay_and_the_signer_is_renewed(tmp_path: Path) -> None:
    """The CA is the anchor of readers; the signer's certificate is new a month before its end."""
    now = datetime.now(UTC)
    files = ensure_c2pa_certificates(tmp_path, now)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    ensure_c2pa_certificates(tmp_path, now + timedelta(days=364))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    ensure_c2pa_certificates(tmp_path, now + timedelta(days=366))
    assert files.ca_path.read_bytes() == before["ca.pem"]
    assert files.certificate_path.read_bytes() != before["signer.pem"]
    assert files.key_path.stat().st_mode & 0o777 == 0o600


def test_an_expired_certificate_signs_nothing(tmp_path: Path) -> None:
    """A picture that should have credentials does not go out with ones that nobody accepts."""
    files = ensure_c2pa_certificates(tmp_path, datetime.now(UTC) - timedelta(days=500))
    with pytest.raises(ConfigurationError, match="cannot be signed"):
        check(credentials_of(files))


def test_what_cannot_sign_is_told_at_start(files: C2paFiles, tmp_path: Path) -> None:
    """A missing half, a missing file, a foreign key and a file that is none: each by name."""
    foreign = tmp_path / "foreign.pem"
    foreign.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    mistakes: dict[str, dict[str, Any]] = {
        "go together": {"c2pa_cert": files.certificate_path},
        "cannot be read": {"c2pa_cert": tmp_path / "none", "c2pa_key": files.key_path},
        "is not the key of": {"c2pa_cert": files.certificate_path, "c2pa_key": foreign},
        "C2PA_KEY cannot be read": {
            "c2pa_cert": files.certificate_path,
            "c2pa_key": files.certificate_path,
        },
    }
    for words, changes in mistakes.items():
        with pytest.raises(ConfigurationError, match=words):
            check_marking(Settings(**changes))
    check_marking(Settings(c2pa_cert=files.certificate_path, c2pa_key=files.key_path))
    check_marking(Settings())


def test_nothing_of_the_request_is_in_the_manifest(files: C2paFiles) -> None:
    """The manifest tells of the model and the program, and has no thumbnail."""
    told = json.loads(read(signed(files, OutputFormat.PNG), "image/png", files.ca_path).json())
    (manifest,) = told["manifests"].values()
    assert "thumbnail" not in manifest
    assert "prompt" not in json.dumps(manifest).lower()
