"""Content Credentials: a C2PA manifest in the file, signed with the operator's certificate.

Made by the official library, c2pa-python, an optional extra. Nothing is fetched: no remote
manifests, no revocation lists, and a time stamp only from an authority that was configured.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from PIL import Image

from server.errors import ConfigurationError
from server.provenance.words import SOFTWARE, SOURCE_TYPE, STATEMENT, software_version

ALGORITHMS = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}

LOCAL_ONLY: dict[str, Any] = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}
"""Settings of the library; whoever reads what we sign adds the authorities to trust."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What to sign with: PEM files, the certificate's with those of its authorities behind it."""

    certificate: Path
    key: Path
    timestamp_url: str | None = None


def sign(data: bytes, content_type: str, credentials: Credentials, model: str) -> bytes:
    """Return the file with a signed manifest in it; its pixels stay.

    Raises `ConfigurationError` when the library is missing or the files cannot be used.
    """
    c2pa = _library()
    chain, key, algorithm = _read(credentials)
    signed = io.BytesIO()
    try:
        info = c2pa.C2paSignerInfo(algorithm, chain, key, credentials.timestamp_url)
        with (
            c2pa.Context.from_dict(LOCAL_ONLY) as context,
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(json.dumps(_manifest(model)), context=context) as builder,
        ):
            builder.sign(signer, content_type, io.BytesIO(data), signed)
    except c2pa.C2paError as error:
        raise ConfigurationError(
            f"content credentials cannot be signed with {credentials.certificate}: {error}"
        ) from error
    return signed.getvalue()


def check(credentials: Credentials) -> None:
    """Sign a picture of one pixel, without a time stamp.

    Raises `ConfigurationError` where signing an image would fail.
    """
    untimed = Credentials(certificate=credentials.certificate, key=credentials.key)
    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "PNG")
    sign(pixel.getvalue(), "image/png", untimed, "none")


def _manifest(model: str) -> dict[str, Any]:
    """Return the manifest's definition: how the picture came to be, and nothing of the request."""
    software = {"name": SOFTWARE, "version": software_version()}
    created = {
        "action": "c2pa.created",
        "digitalSourceType": SOURCE_TYPE,
        "softwareAgent": software,
        "description": f"made by the model {model}",
    }
    return {
        "claim_generator_info": [software],
        "title": STATEMENT,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
    }


def _read(credentials: Credentials) -> tuple[bytes, bytes, str]:
    """Return the chain, the key and the name of its algorithm (C2PA 2.2, section 13.2)."""
    try:
        chain = credentials.certificate.read_bytes()
        key_pem = credentials.key.read_bytes()
        leaf = x509.load_pem_x509_certificate(chain)
        key = serialization.load_pem_private_key(key_pem, None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"FLUX2_C2PA_CERT or FLUX2_C2PA_KEY cannot be read: {error}"
        ) from error
    if leaf.public_key() != key.public_key():
        raise ConfigurationError(f"{credentials.key} is not the key of {credentials.certificate}")
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in ALGORITHMS:
        return chain, key_pem, ALGORITHMS[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return chain, key_pem, "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return chain, key_pem, "ps256"
    raise ConfigurationError(f"{credentials.key}: C2PA has no algorithm for this kind of key")


def _library() -> Any:
    try:
        import c2pa  # noqa: PLC0415  (an extra, and 20 MB of library)
    except ImportError as error:
        raise ConfigurationError(
            "content credentials need c2pa-python: pip install 'flux2-serve[c2pa]'"
        ) from error
    return c2pa
