"""What a server's event loop and its JSON modules do, counted by wrapping them: for bench/path.py."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

COUNTS: Counter[str] = Counter()


def counted(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def count(*args: Any, **kwargs: Any) -> Any:
        COUNTS[name] += 1
        return function(*args, **kwargs)

    return count


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts turns, callbacks, timers and tasks. That takes time, so CPU is measured without it."""

    def __init__(self) -> None:
        super().__init__()
        selector: Any = self._selector  # type: ignore[attr-defined]
        for name in ("modify", "register", "unregister"):
            setattr(selector, name, counted(getattr(selector, name), "selector changes"))
        json.loads = counted(json.loads, "JSON read")

    def _run_once(self) -> None:
        COUNTS["turns"] += 1
        super()._run_once()  # type: ignore[misc]

    def call_soon(self, *args: Any, **kwargs: Any) -> Any:
        COUNTS["callbacks"] += 1
        return super().call_soon(*args, **kwargs)

    def call_at(self, *args: Any, **kwargs: Any) -> Any:
        COUNTS["timers"] += 1
        return super().call_at(*args, **kwargs)

    def create_task(self, *args: Any, **kwargs: Any) -> Any:
        COUNTS["tasks"] += 1
        return super().create_task(*args, **kwargs)


async def counts(_sio: Any) -> dict[str, float]:
    """Return what was counted so far, and the CPU time and the sleeps of the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "CPU us": time.process_time() * 1e6,
        "system CPU us": used.ru_stime * 1e6,
        "sleeps": used.ru_nvcsw,
        **COUNTS,
    }
