"""A fake HTTP server with responses set by the test."""

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

PICTURE = json.dumps({"data": [{"b64_json": "AAAA"}]}).encode()


@dataclass(frozen=True)
class ReceivedRequest:
    """A received request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    address: str

    @property
    def json_body(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document


def format_response(status: int, body: bytes, *headers: str) -> bytes:
    """Return a complete HTTP response."""
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@dataclass
class FakeServer:
    """HTTP server in a thread.

    Args:
        answer: returns the response to a request; None closes the connection.
        calls: received requests in order.
        url: URL of the server.
    """

    answer: Callable[[ReceivedRequest], bytes | None] = lambda call: format_response(200, PICTURE)
    calls: list[ReceivedRequest] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512)

    async def _close(self) -> None:
        self._server.close()
        await self._server.wait_closed()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = first.split()
        call = ReceivedRequest(method, path, headers, body, writer.get_extra_info("peername")[0])
        self.calls.append(call)
        content = self.answer(call)
        if content is not None:
            writer.write(content)
            await writer.drain()
        writer.close()
