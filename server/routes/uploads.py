"""fal's two upload protocols, each for whole files and for files in parts.

With a token the sender puts the file on fal's CDN itself: `/files/upload`. With an announcement
it gets a signed URL, `/uploads/NAME?ticket=...`, and sends no key there. File names that senders
give are not used for anything.
"""

from datetime import UTC, datetime

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import Response

from server.errors import RequestError, field_errors
from server.files import URL_PREFIX
from server.intake import Body
from server.keys import Caller
from server.lifecycle import Lifecycle, read_lifecycle
from server.media import OTHER_TYPE
from server.routes.answers import AsciiJSONResponse, read_json
from server.routes.auth import caller_of, caller_or_none, unauthorized
from server.routes.doors import REST_PREFIX, door_of
from server.tickets import MAX_TICKET_CHARACTERS, Ticket, Tickets
from server.uploads import MAX_PARTS, Uploads, unknown_upload

UPLOADS_PREFIX = "/uploads/"
STORAGE_PREFIX = f"{REST_PREFIX}/storage"
JSON_LIMIT_BYTES = 1024 * 1024
LIFECYCLE_HEADERS = ("x-fal-object-lifecycle", "x-fal-object-lifecycle-preference")
"""The CDN's name for it, and the name the other protocol's Python client uses."""


class Announcement(BaseModel):
    """What is said of a file before it is sent."""

    content_type: str = Field(OTHER_TYPE, max_length=256)


class PartEntry(BaseModel):
    """One part of a list of parts."""

    part_number: int = Field(alias="partNumber", ge=1, le=MAX_PARTS)
    etag: str = Field(max_length=256)


class PartList(BaseModel):
    """What a file is made of, in any order."""

    parts: list[PartEntry] = Field(max_length=MAX_PARTS)


class UploadRoutes:
    """The routes over the given parts; `router` holds them."""

    def __init__(self, uploads: Uploads, tickets: Tickets) -> None:
        self._uploads = uploads
        self._tickets = tickets
        self.router = APIRouter(include_in_schema=False)
        for path, route, method in (
            (f"{STORAGE_PREFIX}/auth/token", self.token, "POST"),
            (f"{STORAGE_PREFIX}/upload/initiate", self.initiate, "POST"),
            (f"{STORAGE_PREFIX}/upload/initiate-multipart", self.initiate_multipart, "POST"),
            (f"{URL_PREFIX}upload", self.upload, "POST"),
            (f"{URL_PREFIX}upload/multipart", self.begin_multipart, "POST"),
            (f"{URL_PREFIX}{{name}}/multipart/{{ticket}}/{{number}}", self.cdn_part, "PUT"),
            (f"{URL_PREFIX}{{name}}/multipart/{{ticket}}/complete", self.cdn_complete, "POST"),
            (f"{UPLOADS_PREFIX}{{name}}", self.put, "PUT"),
            (f"{UPLOADS_PREFIX}{{name}}/{{number}}", self.put_part, "PUT"),
            (f"{UPLOADS_PREFIX}{{name}}/complete", self.put_complete, "POST"),
        ):
            self.router.add_api_route(path, route, methods=[method])

    async def token(self, request: Request) -> Response:
        """Give a token for the CDN's routes."""
        token, expires_at = self._tickets.issue_token(caller_of(request))
        return AsciiJSONResponse(
            {
                "token": token,
                "token_type": "Bearer",
                "base_url": door_of(request).files_origin,
                # With its offset from UTC: fal's Python client cannot compare another.
                "expires_at": datetime.fromtimestamp(expires_at, UTC).isoformat(),
            }
        )

    async def upload(self, request: Request) -> Response:
        """Take a whole file with a token or a key."""
        caller = self._cdn_caller(request)
        ticket = self._announce(request, caller, in_parts=False)
        return await self._receive(request, ticket, caller)

    async def begin_multipart(self, request: Request) -> Response:
        """Begin a file in parts with a token or a key; its id is the signed ticket."""
        ticket = self._announce(request, self._cdn_caller(request), in_parts=True)
        return AsciiJSONResponse(
            {"access_url": _file_url(request, ticket), "uploadId": self._sign(ticket)}
        )

    async def cdn_part(self, request: Request, name: str, ticket: str, number: str) -> Response:
        """Take a part of a file that was begun with a token or a key."""
        return await self._receive_part(request, *self._cdn_ticket(request, name, ticket), number)

    async def cdn_complete(self, request: Request, name: str, ticket: str) -> Response:
        """Put the parts together."""
        found, _ = self._cdn_ticket(request, name, ticket)
        return await self._complete(request, found)

    async def initiate(self, request: Request) -> Response:
        """Announce a whole file."""
        return await self._initiate(request, in_parts=False)

    async def initiate_multipart(self, request: Request) -> Response:
        """Announce a file in parts."""
        return await self._initiate(request, in_parts=True)

    async def put(self, request: Request, name: str) -> Response:
        """Take a whole file that was announced."""
        return await self._receive(request, *self._url_ticket(request, name))

    async def put_part(self, request: Request, name: str, number: str) -> Response:
        """Take a part of a file that was announced."""
        return await self._receive_part(request, *self._url_ticket(request, name), number)

    async def put_complete(self, request: Request, name: str) -> Response:
        """Put the parts together."""
        ticket, _ = self._url_ticket(request, name)
        return await self._complete(request, ticket)

    def _announce(
        self, request: Request, caller: Caller, *, in_parts: bool, announced: str | None = None
    ) -> Ticket:
        if announced is None:
            announced = request.headers.get("content-type", OTHER_TYPE)
        return self._uploads.announce(caller, announced, _lifecycle(request), in_parts=in_parts)

    async def _initiate(self, request: Request, *, in_parts: bool) -> Response:
        try:
            said = Announcement.model_validate(await read_json(request, JSON_LIMIT_BYTES))
        except ValidationError as error:
            raise field_errors(error) from error
        ticket = self._announce(
            request, caller_of(request), in_parts=in_parts, announced=said.content_type
        )
        origin = door_of(request).files_origin
        return AsciiJSONResponse(
            {
                "upload_url": f"{origin}{UPLOADS_PREFIX}{ticket.name}?ticket={self._sign(ticket)}",
                "file_url": _file_url(request, ticket),
            }
        )

    async def _receive(self, request: Request, ticket: Ticket, caller: Caller) -> Response:
        await self._uploads.receive(ticket, caller, _body(request))
        return AsciiJSONResponse({"access_url": _file_url(request, ticket)})

    async def _receive_part(
        self, request: Request, ticket: Ticket, caller: Caller, number: str
    ) -> Response:
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise RequestError(404, "Not Found")
        etag = await self._uploads.receive_part(ticket, caller, int(number), _body(request))
        return AsciiJSONResponse(
            {"partNumber": int(number), "etag": etag}, headers={"etag": f'"{etag}"'}
        )

    async def _complete(self, request: Request, ticket: Ticket) -> Response:
        try:
            listed = PartList.model_validate(await read_json(request, JSON_LIMIT_BYTES))
        except ValidationError as error:
            raise field_errors(error) from error
        await self._uploads.complete(
            ticket, [(part.part_number, part.etag) for part in listed.parts]
        )
        return AsciiJSONResponse({"access_url": _file_url(request, ticket)})

    def _cdn_caller(self, request: Request) -> Caller:
        """Return whose token it is, else whose key. Raises `RequestError` 401."""
        authorization = request.headers.get("authorization", "")
        scheme, _, credential = authorization.partition(" ")
        if scheme.lower() == "bearer" and ":" not in credential:  # which every key has
            caller = self._tickets.read_token(credential.strip())
        else:
            caller = caller_or_none(request)
        if caller is None:
            raise unauthorized(request.url.path, authorization)
        return caller

    def _cdn_ticket(self, request: Request, name: str, text: str) -> tuple[Ticket, Caller]:
        caller = self._cdn_caller(request)
        found = self._tickets.read(text)
        if found is None or found[0].name != name or found[0].owner != caller.owner:
            raise unknown_upload()
        return found

    def _url_ticket(self, request: Request, name: str) -> tuple[Ticket, Caller]:
        found = self._tickets.read(request.query_params.get("ticket", ""))
        if found is None or found[0].name != name:
            raise RequestError(403, "The upload URL is not good, or not any more")
        return found

    def _sign(self, ticket: Ticket) -> str:
        text = self._tickets.sign(ticket)
        if len(text) > MAX_TICKET_CHARACTERS:
            raise RequestError(400, "The initial_acl has too many rules", "bad_request")
        return text


def _file_url(request: Request, ticket: Ticket) -> str:
    return f"{door_of(request).files_origin}{URL_PREFIX}{ticket.name}"


def _body(request: Request) -> Body:
    length = request.headers.get("content-length", "")
    known = length.isascii() and length.isdigit() and len(length) < 19
    return Body(request.stream(), int(length) if known else 0)


def _lifecycle(request: Request) -> Lifecycle:
    given = (request.headers.get(name) for name in LIFECYCLE_HEADERS)
    try:
        return read_lifecycle(next((text for text in given if text is not None), None))
    except ValueError as error:
        raise RequestError(400, f"X-Fal-Object-Lifecycle: {error}", "bad_request") from None
