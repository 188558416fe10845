"""``pack`` and ``unpack``: values that JSON cannot hold, for the pipes and the control endpoint."""

from __future__ import annotations

import base64
import datetime as dt
import math
from typing import Any


def pack(value: Any) -> Any:
    """Make JSON-ready; bytes, tuples, dates and special floats become one-key objects."""
    match value:
        case bytearray():
            return {"$bytearray": base64.b64encode(value).decode()}
        case bytes():
            return {"$bin": base64.b64encode(value).decode()}
        case tuple():
            return {"$tuple": [pack(item) for item in value]}
        case list():
            return [pack(item) for item in value]
        case dict():
            return {key: pack(item) for key, item in value.items()}
        case dt.datetime():
            return {"$datetime": value.isoformat()}
        case float() if not math.isfinite(value):
            return {"$float": str(value)}
        case _:
            return value


def unpack(value: Any) -> Any:
    match value:
        case {"$bin": str(text)}:
            return base64.b64decode(text)
        case {"$bytearray": str(text)}:
            return bytearray(base64.b64decode(text))
        case {"$tuple": list(items)}:
            return tuple(unpack(item) for item in items)
        case {"$datetime": str(text)}:
            return dt.datetime.fromisoformat(text)
        case {"$float": str(text)}:
            return float(text)
        case list():
            return [unpack(item) for item in value]
        case dict():
            return {key: unpack(item) for key, item in value.items()}
        case _:
            return value
