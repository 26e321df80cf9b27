"""Signed permissions: fal's CDN tokens, the ticket in an upload URL, and tokens for applications.

Nothing is stored for them. What stands in one is the server's own word, kept by its sender. A
ticket is used up when there is a file of its name; a token is good until it expires, however often
it is shown, as fal's clients come back with the one they have.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from itsdangerous import BadData, URLSafeSerializer

from server.clock import Clock
from server.durable import make_private_folder, write_durable
from server.errors import ConfigurationError
from server.keys import HOUSE, Caller

KEY_NAME = "upload-tickets.key"
KEY_BYTES = 32
MARK_BYTES = 8
TOKEN_SECONDS = 3600.0
"""How long a CDN token is good; the Python client keeps one and asks for another after that."""

MAX_TICKET_CHARACTERS = 4096
"""Tickets travel in URLs: only a very long access list makes them longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """The permission to store one file under a name that is ours.

    `expires_at` is the ticket's own end, which is never behind the file's. `seconds` is how long
    the file is kept (infinity: for good), `acl` who may read it (see `StoredFile`).
    """

    name: str
    owner: str
    in_parts: bool
    seconds: float
    acl: str | None
    expires_at: float


class Tickets:
    """Signs and reads them with one secret of a folder; `load` comes first.

    `find_caller` tells who an owner is now: nothing signed for a revoked key is good any more. Nor
    is what was signed for the house while it had another key than the one of `house_digest`.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        find_caller: Callable[[str], Caller | None],
        house_digest: bytes = b"",
    ) -> None:
        self._path = folder / KEY_NAME
        self._clock = clock
        self._find_caller = find_caller
        self._house_digest = house_digest
        self._house = HOUSE
        self._tokens = _serializer(b"", "token")
        self._uploads = _serializer(b"", "upload")
        self._app_tokens = _serializer(b"", "app token")

    def load(self) -> None:
        """Read the secret, or make it.

        Raises `ConfigurationError` when there is a file and it is not one of ours.
        """
        make_private_folder(self._path.parent)
        secret = _read_secret(self._path)
        if self._house_digest:
            # Keyed, as whoever has a token reads what stands in it, and keys can be weak.
            mark = hmac.digest(secret, b"house key" + self._house_digest, "sha256")
            self._house = f"{HOUSE} {mark[:MARK_BYTES].hex()}"
        self._tokens = _serializer(secret, "token")
        self._uploads = _serializer(secret, "upload")
        self._app_tokens = _serializer(secret, "app token")

    def issue_token(self, caller: Caller) -> tuple[str, float]:
        """Return a CDN token for the caller, and when it expires."""
        expires_at = self._clock() + TOKEN_SECONDS
        return _dump(self._tokens, [self._holder_of(caller.owner), expires_at]), expires_at

    def read_token(self, token: str) -> Caller | None:
        """Return whose token this is, or None when it is not good or not any more."""
        payload = _load(self._tokens, token)
        if payload is None:
            return None
        holder, expires_at = payload
        return self._find_holder(holder) if self._clock() < expires_at else None

    def issue_app_token(self, caller: Caller, apps: Iterable[str], seconds: float) -> str:
        """Return a token that opens these applications, each an alias or `owner/alias`."""
        expires_at = self._clock() + seconds
        holder = self._holder_of(caller.owner)
        return _dump(self._app_tokens, [holder, expires_at, sorted(set(apps))])

    def read_app_token(self, token: str, app_id: str) -> Caller | None:
        """Return whose token this is, None when it is not good for this application any more."""
        payload = _load(self._app_tokens, token)
        if payload is None:
            return None
        holder, expires_at, apps = payload
        if self._clock() >= expires_at or not {app_id, app_id.partition("/")[2]} & set(apps):
            return None
        return self._find_holder(holder)

    def sign(self, ticket: Ticket) -> str:
        """Return the ticket as text for a URL."""
        return _dump(self._uploads, {**asdict(ticket), "owner": self._holder_of(ticket.owner)})

    def read(self, text: str) -> tuple[Ticket, Caller] | None:
        """Return the ticket and its owner as a caller, or None when it is not good any more."""
        payload = _load(self._uploads, text)
        if payload is None:
            return None
        caller = self._find_holder(payload["owner"])
        if caller is None or self._clock() >= payload["expires_at"]:
            return None
        return Ticket(**{**payload, "owner": caller.owner}), caller

    def _holder_of(self, owner: str) -> str:
        """Return what an owner is called in what is signed: the house by its present key too."""
        return self._house if owner == HOUSE else owner

    def _find_holder(self, holder: str) -> Caller | None:
        """Return who that is now, or None for a key that is revoked or was replaced."""
        if holder == self._house:
            return self._find_caller(HOUSE)
        return None if holder == HOUSE else self._find_caller(holder)


def _serializer(secret: bytes, salt: str) -> URLSafeSerializer:
    """Sign with HMAC-SHA-256; the salt keeps a token from passing as a ticket."""
    return URLSafeSerializer(
        secret,
        salt=f"flux2-serve {salt}",
        signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
    )


def _dump(serializer: URLSafeSerializer, payload: Any) -> str:
    return str(serializer.dumps(payload))


def _load(serializer: URLSafeSerializer, text: str) -> Any:
    try:
        return serializer.loads(text)
    except BadData:
        return None


def _read_secret(path: Path) -> bytes:
    """Return the secret in the file; a crash while it is made leaves none."""
    if not path.exists():
        write_durable(path, secrets.token_bytes(KEY_BYTES))
    path.chmod(0o600)  # as it may not be after a restored backup
    secret = path.read_bytes()
    if len(secret) != KEY_BYTES:
        raise ConfigurationError(f"{path} is not a secret of ours; delete it to have a new one")
    return secret
