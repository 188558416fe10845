"""The statements of ``queries.sql``, by name, for one schema."""

from __future__ import annotations

import functools
import re
from importlib.resources import files

from sio_pg_adapter.errors import ConfigurationError

MAX_SCHEMA_BYTES = 63
_NAMED = re.compile(r"^-- name: (\w+)\n((?:--[^\n]*\n)*)(.*?)(?=^-- name: |\Z)", re.MULTILINE | re.DOTALL)


def quoted(name: str) -> str:
    """A schema's name as an SQL identifier.

    :raises ConfigurationError: for what PostgreSQL takes no name of.
    """
    try:
        size = len(name.encode())
    except (AttributeError, UnicodeError):  # no text, or half of a surrogate pair in it
        size = 0
    if not 1 <= size <= MAX_SCHEMA_BYTES or "\0" in name:
        raise ConfigurationError(f"schema takes a name of 1 to {MAX_SCHEMA_BYTES} bytes: not {name!r}")
    return '"' + name.replace('"', '""') + '"'


@functools.cache
def _templates() -> dict[str, str]:
    text = files(__package__).joinpath("queries.sql").read_text(encoding="utf-8")
    return {name: statement.strip() for name, _, statement in _NAMED.findall(text)}


class Queries:
    """``queries["range"]``: the statement of that name, for the schema."""

    def __init__(self, schema: str) -> None:
        prefix = quoted(schema) + "."
        # A function, so that a backslash in the name is no group reference.
        self._statements = {name: re.sub(r"\bsio\.", lambda _: prefix, text) for name, text in _templates().items()}

    def __getitem__(self, name: str) -> str:
        return self._statements[name]

    def __iter__(self) -> object:
        return iter(self._statements)
