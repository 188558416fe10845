"""``request``: one HTTP request on one connection, for the control endpoint and for polling by hand."""

from __future__ import annotations

import asyncio
import ssl


async def request(
    port: int,
    method: str,
    target: str,
    body: bytes = b"",
    content_type: str = "application/json",
    *,
    tls: bool = False,
) -> tuple[int, bytes]:
    """Return status and body. Cancelling it closes the connection, as a client that went away."""
    context = ssl._create_unverified_context() if tls else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20, ssl=context)
    try:
        head = (
            f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        status_line, *headers = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        status = int(status_line.split()[1])
        fields = dict(line.lower().split(": ", 1) for line in headers if line)
        if fields.get("transfer-encoding") == "chunked":
            return status, await _chunks(reader)
        return status, await reader.readexactly(int(fields["content-length"]))
    finally:
        writer.close()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    return b"".join(parts)
