"""Sockets, TLS and signals around the app: what `flux2-serve serve` does."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI

from server.certs import TlsFiles
from server.connect import lead_to_us
from server.errors import ConfigurationError
from server.protocol import STALL_SECONDS
from server.protocol import with_limits as http_with_limits
from server.settings import Settings
from server.sockets import Visitors, listen_on, raise_file_limit
from server.websocket import PING_SECONDS
from server.websocket import with_limits as websocket_with_limits

log = structlog.get_logger(__name__)

CLOSE_SECONDS = 5


class Server(uvicorn.Server):
    """A uvicorn server that leaves the signals to us: two of them share one process.

    `handshake_seconds` limits the time that a TLS handshake may take.
    """

    def __init__(self, config: uvicorn.Config, handshake_seconds: float) -> None:
        super().__init__(config)
        self.handshake_seconds = handshake_seconds

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Capture nothing."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the door as uvicorn does, with a limit on the time that a TLS handshake takes."""
        loop = asyncio.get_running_loop()

        def make_protocol() -> asyncio.Protocol:
            return self.make_protocol(loop)

        handshake = self.handshake_seconds if self.config.ssl else None
        self.servers = [
            await loop.create_server(
                make_protocol, sock=bound, ssl=self.config.ssl, ssl_handshake_timeout=handshake
            )
            for bound in sockets or ()
        ]
        self.started = True

    def make_protocol(self, loop: asyncio.AbstractEventLoop) -> asyncio.Protocol:
        """Make what speaks HTTP on one new connection."""
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state={}, _loop=loop)

    async def take_over(self, connection: socket.socket) -> None:
        """Serve a connection that came in elsewhere. Raises `OSError` when TLS does not begin."""
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(
            lambda: self.make_protocol(loop),
            connection,
            ssl=self.config.ssl,
            ssl_handshake_timeout=self.handshake_seconds,
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close idle connections at once, then wait for the busy ones as uvicorn does.

        An idle TLS client that is not reading would otherwise keep a farewell handshake open
        until the time-out.
        """
        for connection in list(self.server_state.connections):
            connection.shutdown()
            transport = connection.transport
            if transport and transport.is_closing() and not transport.get_write_buffer_size():
                transport.abort()
        await super().shutdown(sockets)


async def serve(app: FastAPI, settings: Settings, make_tls: Callable[[], TlsFiles] | None) -> None:
    """Serve the app over HTTP and, with `make_tls`, HTTPS, until SIGINT or SIGTERM.

    `make_tls` gives a valid certificate; it is asked again every day, so that a server that runs
    for years renews in time.

    Prints one line for each port once it is open. The first signal lets the running image
    finish (`drain_seconds`), the second one does not. Raises `ConfigurationError` when a port
    cannot be had.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    loop.add_signal_handler(signal.SIGUSR1, app.state.toggle_hold)

    with contextlib.ExitStack() as sockets:
        raise_file_limit()
        visitors = Visitors(settings.connections_per_address)
        bound = listen_on(settings.host, settings.port, visitors)
        doors = [(_make_server(app, settings, None), bound, "http")]
        sockets.enter_context(doors[0][1])
        keepers, proxy = [], None
        if make_tls:
            bound = sockets.enter_context(
                listen_on(settings.host, settings.tls_port or 0, visitors)
            )
            secure = _make_server(app, settings, make_tls())
            doors.append((secure, bound, "https"))
            keepers.append(asyncio.create_task(keep_certificate(secure.config, make_tls)))
            if settings.connect_port is not None:
                proxy = listen_on(settings.host, settings.connect_port, visitors)
                sockets.enter_context(proxy)
        # The lifespan is ours to run: it spans both servers, and outlives their last answer.
        async with app.router.lifespan_context(app):
            running = []
            for server, bound, scheme in doors:
                running.append(asyncio.create_task(server.serve(sockets=[bound])))
                print(f"listening on {_url(scheme, bound)}", flush=True)  # noqa: T201
            if proxy:
                leading = lead_to_us(proxy, secure.take_over, settings.header_seconds)
                keepers.append(asyncio.create_task(leading))
                print(f"listening on {_url('connect', proxy)}", flush=True)  # noqa: T201
            _spare_the_collector()
            await _first_of(stop.wait(), *running)
            log.info("stopping")
            await _first_of(app.state.drain(settings.drain_seconds), hurry.wait())
            await app.state.drain(0)
            for keeper in keepers:
                keeper.cancel()
            for server, _, _ in doors:
                server.should_exit = True
            await asyncio.gather(*running)


def _spare_the_collector() -> None:
    """Have the garbage collector pass over all that is there now and stays, such as modules.

    Under many requests at once it would look through these some hundred thousand objects several
    times a second, and everybody waits meanwhile.
    """
    gc.collect()
    gc.freeze()


async def keep_certificate(
    config: uvicorn.Config, make_tls: Callable[[], TlsFiles], every_seconds: float = 86_400
) -> None:
    """Give new connections the certificate that `make_tls` returns, once a day; never returns."""
    while True:
        await asyncio.sleep(every_seconds)
        try:
            tls = await asyncio.to_thread(make_tls)
            if config.ssl:
                config.ssl.load_cert_chain(tls.certificate_path, tls.key_path)
        except (OSError, ConfigurationError):
            log.exception("the certificate could not be renewed")


async def _first_of(*waited: Coroutine[Any, Any, Any] | asyncio.Task[Any]) -> None:
    """Return when the first is done; cancel those that were not tasks already."""
    tasks = [
        item if isinstance(item, asyncio.Task) else asyncio.create_task(item) for item in waited
    ]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task, item in zip(tasks, waited, strict=True):
        if task is not item:
            task.cancel()


def _make_server(app: FastAPI, settings: Settings, tls: TlsFiles | None) -> Server:
    return Server(
        uvicorn.Config(
            app,
            http=http_with_limits(settings),
            ws=websocket_with_limits(settings),
            ws_max_size=settings.body_limit_bytes,
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=STALL_SECONDS,
            # What is large in a message is pictures, which do not get any smaller.
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=CLOSE_SECONDS,
            ssl_certfile=tls.certificate_path if tls else None,
            ssl_keyfile=tls.key_path if tls else None,
        ),
        settings.header_seconds,
    )


def _url(scheme: str, bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
