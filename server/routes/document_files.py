"""The part of the server's OpenAPI document about uploads and files."""

from server.routes.document_parts import (
    LIFECYCLE,
    NAME,
    OF_A_BODY,
    OF_A_FILE,
    OF_AN_UPLOAD,
    STORAGE_TYPE,
    TEXT,
    Json,
    answer,
    body,
    operation,
    parameter,
    record,
)
from server.uploads import MAX_PARTS


def storage_paths() -> Json:
    """Describe the routes that hand out where to upload to."""
    announced = body(record(required=False, file_name=TEXT, content_type=TEXT))
    placed = record(upload_url=TEXT, file_url=TEXT)
    tag: Json = {"tags": ["storage"]}
    token = record(token=TEXT, token_type=TEXT, base_url=TEXT, expires_at=TEXT)
    paths: Json = {
        "/rest/storage/auth/token": {
            "post": operation(
                "token",
                "Get a token to upload with.",
                {200: answer("The token.", token)},
                OF_A_BODY,
                parameters=[STORAGE_TYPE],
                requestBody=body({"type": "object"}),
                **tag,
            )
        }
    }
    for word in ("initiate", "initiate-multipart"):
        paths[f"/rest/storage/upload/{word}"] = {
            "post": operation(
                word,
                "Get a URL to upload to without a key.",
                {200: answer("Where to put the file, and where it will be.", placed)},
                OF_AN_UPLOAD,
                parameters=[STORAGE_TYPE, LIFECYCLE],
                requestBody=announced,
                **tag,
            )
        }
    return paths


def file_paths() -> Json:
    """Describe the routes that take and serve files."""
    tag: Json = {"tags": ["files"]}
    raw = body({}, "application/octet-stream")
    name = parameter("path", "name", NAME, "The name in the file's URL.")
    upload_id = parameter("path", "upload_id", NAME, "The id that the announcement answered.")
    number = parameter(
        "path",
        "number",
        {"type": "integer", "minimum": 1, "maximum": MAX_PARTS},
        "Which part it is.",
    )
    ticket = parameter("query", "ticket", NAME, "From the `upload_url`.", required=True)
    file_name = parameter("header", "X-Fal-File-Name", TEXT, "What the sender calls the file.")
    part = record(partNumber={"type": "integer"}, etag=TEXT)
    parts = body(record(parts={"type": "array", "items": part}))
    there = record(access_url=TEXT)
    begun = record(access_url=TEXT, uploadId=TEXT)
    ranged = parameter("header", "Range", TEXT, "Which bytes.", example="bytes=0-99")
    file = {code: answer("The file.", media="*/*") for code in (200, 206)}
    file[304] = {"description": "It is what the caller has."}

    def take(key: str, text: str, made: Json | None, **more: object) -> Json:
        return operation(key, text, {200: answer("Taken.", made)}, OF_AN_UPLOAD, **more, **tag)

    def put(key: str, *parameters: Json) -> Json:
        return take(key, "Upload.", {"type": "object"}, parameters=[*parameters], requestBody=raw)

    def finish(key: str, *parameters: Json) -> Json:
        text = "Put the parts together."
        return take(key, text, there, parameters=[*parameters], requestBody=parts)

    upload, inside = "/files/upload", "/files/{name}/multipart/{upload_id}"
    sent: Json = {"parameters": [file_name, LIFECYCLE]}
    downloads = {
        method: operation(
            f"{method} file",
            "A stored file.",
            file,
            OF_A_FILE,
            parameters=[name, ranged],
            **tag,
        )
        for method in ("get", "head")
    }
    return {
        upload: {"post": take("upload", "Upload a file.", there, requestBody=raw, **sent)},
        f"{upload}/multipart": {"post": take("begin", "Begin to upload in parts.", begun, **sent)},
        f"{inside}/{{number}}": {"put": put("part", name, upload_id, number)},
        f"{inside}/complete": {"post": finish("complete", name, upload_id)},
        "/uploads/{name}": {"put": put("put", name, ticket)},
        "/uploads/{name}/{number}": {"put": put("put part", name, number, ticket)},
        "/uploads/{name}/complete": {"post": finish("complete put", name, ticket)},
        "/files/{name}": downloads,
    }
