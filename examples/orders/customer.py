"""A customer in a terminal: `python customer.py ada` prints the events of the shop until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

from sio_pg_adapter import AsyncClient

client = AsyncClient()


@client.event
async def connect() -> None:
    print("connected, nothing was missed" if client.recovered() else "connected with a new session")


@client.event
async def disconnect() -> None:
    print("connection lost")


@client.on("*")
async def received(event: str, data: Any) -> None:
    print(event, data)


async def main(name: str) -> None:
    await client.connect("http://127.0.0.1:8000", auth={"customer": name}, retry=True)
    await client.wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1]))
