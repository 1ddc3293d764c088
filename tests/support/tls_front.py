"""A TLS listener before a plain server: the servers that the tests bring were built without TLS.

What is proven is the client's side, that it verifies; the certificates are those that docker/make-secrets makes.
"""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers import free_port

# Both lead to this machine; only the first stands in the certificates of make-secrets.
NAMED, UNNAMED = "127.0.0.1", "127.0.0.2"

# PostgreSQL begins in clear: the client asks for TLS in eight bytes, and the server says S for yes.
POSTGRES_ASKS, POSTGRES_AGREES = b"\0\0\0\x08\x04\xd2\x16\x2f", b"S"


@contextmanager
def tls_front(certificates: Path, *, name: str, port: int) -> Iterator[int]:
    """Listen on NAMED and UNNAMED with the certificate of `name` ("redis" or "postgres"); yields the port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / f"{name}_certificate", certificates / f"{name}_key")

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if name == "postgres":
            assert await reader.readexactly(8) == POSTGRES_ASKS
            writer.write(POSTGRES_AGREES)
        await writer.start_tls(context)
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pipe(reader, behind_writer), pipe(behind_reader, writer), return_exceptions=True)

    front, ready, stop = free_port(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        listener = await asyncio.start_server(join, [NAMED, UNNAMED], front)
        ready.set()
        await stop.wait()
        listener.close()  # the runner then ends the connections that are still open

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(lambda *_: None)  # a refused handshake is what some tests are about
        thread = threading.Thread(target=runner.run, args=[serve()])
        thread.start()
        assert ready.wait(timeout=10)
        try:
            yield front
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
