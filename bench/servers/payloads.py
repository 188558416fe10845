"""What the servers of the benchmarks emit."""

from __future__ import annotations

import json
from typing import Any


def payload(size: int, number: int) -> dict[str, Any]:
    """Data with which the event's JSON array has so many bytes."""
    data = {"i": number, "pad": ""}
    data["pad"] = "x" * (size - len(json.dumps(["n", data], separators=(",", ":"))))
    return data


def room(number: int, count: int, due: int | None) -> str:
    due = count if due is None else due
    return "bench" if (number + 1) * due // count > number * due // count else "other"
