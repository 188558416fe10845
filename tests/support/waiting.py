"""``until``: how a test waits for something in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


async def until(true: Callable[[], Any], what: str = "it") -> None:
    """Give the loop turns until something in memory is so. Where there is an event to await, await that."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0)
