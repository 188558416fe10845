"""The statements of ``queries.sql``, by name, for one schema."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from importlib.resources import files

from sio_pg_adapter.schema_names import checked_schema, in_schema

_NAMED = re.compile(r"^-- name: (\w+)\n((?:--[^\n]*\n)*)(.*?)(?=^-- name: |\Z)", re.MULTILINE | re.DOTALL)


@functools.cache
def _templates() -> dict[str, str]:
    text = files(__package__).joinpath("queries.sql").read_text(encoding="utf-8")
    return {name: statement.strip() for name, _, statement in _NAMED.findall(text)}


class Queries:
    """``queries["range"]``: the statement of that name, for the schema."""

    def __init__(self, schema: str) -> None:
        checked_schema(schema)
        self._statements = {name: in_schema(statement, schema) for name, statement in _templates().items()}

    def __getitem__(self, name: str) -> str:
        return self._statements[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._statements)
