"""Listening: certificates that change under a running server."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvicorn
from cryptography import x509

from server.certs import TlsFiles, ensure_certificates
from server.listen import Server, keep_certificate
from server.sockets import Visitors, listen_on

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20


async def read_serial(port: int, ca_path: Path) -> int:
    """Connect as a client does and return the serial number of the server's certificate."""
    context = ssl.create_default_context(cafile=ca_path)
    _, writer = await asyncio.open_connection("localhost", port, ssl=context)
    tls = writer.get_extra_info("ssl_object")
    certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True))
    writer.close()
    await writer.wait_closed()
    return certificate.serial_number


async def test_a_renewed_certificate_is_served_without_a_restart(tmp_path: Path) -> None:
    """Connections after the renewal get the new certificate from the same listening socket."""
    old = datetime.now(UTC) - timedelta(days=380)
    first = ensure_certificates(tmp_path, now=old)
    config = uvicorn.Config(
        lambda: None,
        ssl_certfile=first.certificate_path,
        ssl_keyfile=first.key_path,
        log_config=None,
    )
    config.load()
    renewed = asyncio.Event()

    def renew() -> TlsFiles:
        files = ensure_certificates(tmp_path)
        loop.call_soon_threadsafe(renewed.set)
        return files

    loop = asyncio.get_running_loop()

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "localhost", 0, ssl=config.ssl)
    port = server.sockets[0].getsockname()[1]
    async with server:
        before = await read_serial(port, first.ca_path)
        keeping = asyncio.create_task(keep_certificate(config, renew, every_seconds=0))
        await renewed.wait()
        renewed.clear()
        await renewed.wait()  # the second call comes after the first one's certificate is loaded
        keeping.cancel()
        assert await read_serial(port, first.ca_path) != before


async def test_a_handshake_has_its_time(tmp_path: Path) -> None:
    """Who connects to the TLS port and says nothing, or no TLS, is hung up on; others are not."""
    files = ensure_certificates(tmp_path)
    config = uvicorn.Config(
        answer,
        ws="none",
        lifespan="off",
        ssl_certfile=files.certificate_path,
        ssl_keyfile=files.key_path,
        log_config=None,
    )
    server = Server(config, handshake_seconds=0.3)
    visitors = Visitors(10)
    with listen_on("127.0.0.1", 0, visitors) as bound:
        running = asyncio.create_task(server.serve(sockets=[bound]))
        port = bound.getsockname()[1]
        for sent in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            async with asyncio.timeout(WAIT_SECONDS):
                while await reader.read(100):  # a TLS alert may come first
                    pass
            writer.close()
            await writer.wait_closed()
        async with asyncio.timeout(WAIT_SECONDS):
            while visitors._open:  # noqa: ASYNC110  (a closed socket sets no event)
                await asyncio.sleep(0)
            await read_serial(port, files.ca_path)
        server.should_exit = True
        await running


async def answer(_scope: object, _receive: object, _send: object) -> None:
    """Answer nothing: no request is sent."""
