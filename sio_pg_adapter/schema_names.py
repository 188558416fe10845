"""The name of a schema: checked, quoted, and put into SQL."""

from __future__ import annotations

import re

from sio_pg_adapter.errors import ConfigurationError

MAX_NAME_BYTES = 63
"""The longest name of a schema, in bytes. PostgreSQL would cut a longer one silently, and two schemas become one."""


def checked_schema(schema: str) -> str:
    """Return ``schema`` if PostgreSQL takes it as the name of a schema.

    :raises ConfigurationError: if it does not.
    """
    try:
        size = len(schema.encode())
    except (AttributeError, UnicodeError):  # not text, or text with a lone surrogate
        size = 0
    if not 1 <= size <= MAX_NAME_BYTES or "\0" in schema or schema.startswith("pg_"):
        raise ConfigurationError(
            f"schema takes a name of 1 to {MAX_NAME_BYTES} bytes, without NUL and not beginning with pg_, "
            f"not {schema!r}"
        )
    return schema


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def in_schema(sql: str, schema: str) -> str:
    """Return SQL that names its schema ``sio`` for another schema.

    All is replaced at once, because the name is data. It may look like a placeholder, or end a function's body.
    """
    name, tag, n = quoted(schema), "$$", 0
    while tag in name:
        tag, n = f"$sio{n}$", n + 1
    literal = name.replace("'", "''")
    by = {"sio.": f"{name}.", "'sio.": f"'{literal}.", "$$": tag}
    return re.sub(r"'?\bsio\.(?=sio_)|\$\$", lambda match: by[match[0]], sql)
