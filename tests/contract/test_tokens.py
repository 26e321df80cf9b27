"""Tokens from outside: what they open, for how long, again and again, and who gets one."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import httpx2
import msgpack
import pytest
from websockets.exceptions import ConnectionClosed

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import Api, connect, poll_until
from tests.contract.fault_server import ENDPOINT, INSTANT, start_fault_server
from tests.contract.test_keys import Key, create, keys_command
from tests.contract.websocket_calls import REALTIME, ask, end_code, read, refusal, talk

OTHER = "fal-ai/flux-2-flex"


@pytest.fixture(scope="module")
def keyed(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningServer, Key]]:
    """Return a server that asks for a key, and that key."""
    data_dir = tmp_path_factory.mktemp("keyed") / "data"
    key = create(data_dir)
    server = start_fault_server(start_server, data_dir)
    yield server, key
    assert server.stop() == 0
    assert not [line for line in server.lines if "Traceback" in line or "fal_jwt_token" in line]


def token_for(server: RunningServer, key: Key, app: str, seconds: int = 60) -> str:
    """Get a token as fal's clients do."""
    with connect(server, authorization=f"Key {key.credential}") as http:
        answer = http.post(
            "/rest/tokens/", json={"allowed_apps": [app], "token_expiration": seconds}
        )
    assert answer.status_code == 200
    token = answer.json()
    assert isinstance(token, str)
    return token


def is_refused(server: RunningServer, token: str) -> bool:
    """Say whether a token is refused on a websocket, in the words that both clients know."""
    with talk(server, f"{REALTIME}?fal_jwt_token={token}") as line:
        with contextlib.suppress(ConnectionClosed):
            line.send(msgpack.packb(INSTANT))
        told = read(line)
        if "images" in told:
            return False
        assert (told["type"], told["status"]) == ("x-fal-error", "error")
        assert told["error"] == "Unauthorized"
        assert end_code(line) == 1008
        return True


def test_keys_and_tokens_open_a_websocket(keyed: tuple[RunningServer, Key]) -> None:
    """Without either it is HTTP's 401; a token opens its own application, and HTTP over it none."""
    server, key = keyed
    assert refusal(server)[0] == 401
    assert refusal(server, REALTIME, authorization="Key a:b")[0] == 401
    with talk(server, authorization=f"Key {key.credential}") as line:
        assert ask(line, INSTANT)["images"]
    token = token_for(server, key, "flux-2")
    assert not is_refused(server, token)
    assert is_refused(server, token[:-4] + "AAAA")
    assert is_refused(server, token_for(server, key, OTHER))
    with talk(server, f"/ws/{ENDPOINT}?fal_jwt_token={token}") as line:
        assert read(line)["error"] == "Unauthorized"


def test_a_token_is_good_again_until_it_expires(keyed: tuple[RunningServer, Key]) -> None:
    """Clients come back with the one they have; what is open then stays open."""
    server, key = keyed
    token = token_for(server, key, "flux-2", 4)
    path = f"{REALTIME}?fal_jwt_token={token}"
    with talk(server, path) as line:
        assert not is_refused(server, token)
        poll_until(lambda: is_refused(server, token), "the token expires", 20)
        assert ask(line, INSTANT)["images"]
    with connect(server) as http:
        answer = http.post(f"/{ENDPOINT}/stream?fal_jwt_token={token}", json=INSTANT)
        assert answer.status_code == 401


def test_a_token_streams_and_does_nothing_else(keyed: tuple[RunningServer, Key]) -> None:
    """Not even what belongs to its key."""
    server, key = keyed
    query = {"fal_jwt_token": token_for(server, key, ENDPOINT)}
    other = {"fal_jwt_token": token_for(server, key, OTHER)}

    def status(http: httpx2.Client, method: str, path: str, params: dict[str, str]) -> int:
        return http.request(method, path, params=params, json=INSTANT).status_code

    with connect(server) as http:
        assert status(http, "POST", f"/{ENDPOINT}/stream", query) == 200
        assert status(http, "POST", f"/{ENDPOINT}/stream", other) == 401
        for method, path in (
            ("POST", f"/{ENDPOINT}"),
            ("POST", f"/queue/{ENDPOINT}"),
            ("GET", f"/queue/{ENDPOINT}/requests/x/status/stream"),
            ("POST", f"/queue/{ENDPOINT}/stream"),
            ("POST", "/rest/tokens/"),
            ("GET", f"/v1/models/requests/by-endpoint?endpoint_id={ENDPOINT}"),
        ):
            assert status(http, method, path, query) == 401


def test_a_token_may_hide_its_images(keyed: tuple[RunningServer, Key]) -> None:
    """As the key may: what somebody wants to be hidden is never shown for want of a right."""
    server, key = keyed
    token = token_for(server, key, ENDPOINT)
    hidden = {"x-fal-object-lifecycle-preference": '{"initial_acl": {"default": "forbid"}}'}
    seen = []
    with connect(server) as http:
        for caller, query in (
            ({"authorization": f"Key {key.credential}"}, {}),
            ({}, {"fal_jwt_token": token}),
        ):
            answer = http.post(
                f"/{ENDPOINT}/stream", params=query, json=INSTANT, headers={**hidden, **caller}
            )
            last = json.loads(answer.text.rpartition("data: ")[2])
            seen.append(http.get(last["images"][0]["url"]).status_code)
    assert seen == [404, 404]


def test_webhooks_are_for_the_key_to_ask_for(keyed: tuple[RunningServer, Key]) -> None:
    """Neither a token nor a realtime connection has any; the key's own stream does."""
    server, key = keyed
    token, authorization = token_for(server, key, ENDPOINT), f"Key {key.credential}"
    paths = [
        f"/{ENDPOINT}/stream?fal_webhook=https://127.0.0.1:9/{end}" for end in ("key", "token")
    ]
    with connect(server) as http:
        http.post(paths[0], json=INSTANT, headers={"authorization": authorization})
        http.post(f"{paths[1]}&fal_jwt_token={token}", json=INSTANT)
    for query, headers in (
        (f"&fal_jwt_token={token}", {}),
        ("", {"authorization": authorization}),
    ):
        path = f"{REALTIME}?fal_webhook=https://127.0.0.1:9/realtime{query}"
        with talk(server, path, **headers) as line:
            assert ask(line, INSTANT)["images"]
    with contextlib.closing(sqlite3.connect(server.data_dir / "queue.sqlite3")) as database:
        asked = database.execute("SELECT webhook_url FROM jobs WHERE webhook_url IS NOT NULL")
        assert asked.fetchall() == [("https://127.0.0.1:9/key",)]


def test_a_revoked_key_ends_its_tokens_and_its_websockets(keyed: tuple[RunningServer, Key]) -> None:
    """Also those that are open."""
    server, _ = keyed
    key = create(server.data_dir)

    def is_known() -> bool:
        with connect(server, authorization=f"Key {key.credential}") as http:
            return http.get(f"/queue/{ENDPOINT}/requests/x/status").status_code == 404

    poll_until(is_known, "the new key is known", 10)
    token = token_for(server, key, "flux-2")
    with talk(server, f"{REALTIME}?fal_jwt_token={token}") as line:
        assert ask(line, INSTANT)["images"]
        assert keys_command(server.data_dir, "revoke", key.id).returncode == 0
        poll_until(lambda: is_refused(server, token), "the token is refused", 10)
        assert ask(line, INSTANT)["error"] == "Unauthorized"
        assert end_code(line) == 1008


@pytest.mark.parametrize(
    ("path", "body", "loc"),
    [
        ("/rest/tokens/", {}, "allowed_apps"),
        ("/rest/tokens", {"allowed_apps": []}, "allowed_apps"),
        ("/rest/tokens", {"allowed_apps": "flux-2"}, "allowed_apps"),
        ("/rest/tokens", {"allowed_apps": ["a b"]}, "allowed_apps"),
        ("/rest/tokens", {"allowed_apps": [""]}, "allowed_apps"),
        ("/rest/tokens", {"allowed_apps": ["x" * 101]}, "allowed_apps"),
        ("/rest/tokens", {"allowed_apps": ["x"] * 17}, "allowed_apps"),
        ("/rest/tokens", {"allowed_apps": ["x"], "token_expiration": 0}, "token_expiration"),
        ("/rest/tokens", {"allowed_apps": ["x"], "token_expiration": 86401}, "token_expiration"),
        ("/rest/tokens/realtime", {"allowed_apps": ["x"], "duration": "long"}, "duration"),
    ],
)
def test_wrong_orders_of_tokens(api: Api, path: str, body: Any, loc: str) -> None:
    """Each is told where it is wrong; without a key the box's own account gets tokens too."""
    answer = api.http.post(path, json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][:2] == ["body", loc]
    good = {"allowed_apps": ["/fal-ai/flux-2/realtime"], "duration": 86400}
    assert isinstance(api.http.post(path, json=good).json(), str)
