"""The setting ``SIO_PG``, and the database that it names."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import quote, urlencode

from django.conf import settings
from django.db import connections
from django.utils.connection import ConnectionDoesNotExist

from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.schema_names import checked_schema

URL_OPTIONS = frozenset(
    [
        "application_name",
        "connect_timeout",
        "options",
        "passfile",
        "service",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslpassword",
        "sslrootcert",
        "target_session_attrs",
    ]
)
"""The OPTIONS of a database of Django's that belong into a URL. Others are for Django or for psycopg."""


@dataclass(frozen=True)
class Settings:
    """The setting ``SIO_PG``, checked.

    :ivar database: the alias of the database that has the tables.
    :ivar schema: the schema of the tables.
    """

    database: str = "default"
    schema: str = "public"


def read_settings() -> Settings:
    """Return the setting ``SIO_PG`` of the project.

    :raises ConfigurationError: if it has another key, or a value that cannot be meant.
    """
    given = getattr(settings, "SIO_PG", {})
    if not isinstance(given, dict):
        raise ConfigurationError(f"SIO_PG takes a dict, not {given!r}")
    known = [field.name.upper() for field in fields(Settings)]
    if unknown := [key for key in given if key not in known]:
        raise ConfigurationError(f"SIO_PG has no key {unknown[0]!r}. It takes {', '.join(known)}")
    made = Settings(**{key.lower(): value for key, value in given.items()})
    checked_schema(made.schema)
    if made.database not in settings.DATABASES:
        raise ConfigurationError(
            f"SIO_PG names the database {made.database!r}, which is not in DATABASES. It has "
            f"{', '.join(settings.DATABASES)}"
        )
    return made


def check_vendor(connection: Any) -> None:
    """Check that a connection of Django's leads to PostgreSQL.

    :raises ConfigurationError: if it does not.
    """
    if connection.vendor != "postgresql":
        raise ConfigurationError(
            f"sio_pg_adapter needs PostgreSQL, and the database {connection.alias!r} is {connection.display_name}. "
            'Name another one in SIO_PG, as in {"DATABASE": "events"}'
        )


def database_url(alias: str | None = None) -> str:
    """Return the URL of a database of the settings, for ``AsyncPostgresManager`` and ``sio-pg --dsn``.

    In a test run it is that of the test database.

    :param alias: a key of ``DATABASES``. Without it, the database that ``SIO_PG`` names.
    :raises ConfigurationError: if it is not PostgreSQL, or is not in ``DATABASES``.
    """
    try:
        connection = connections[read_settings().database if alias is None else alias]
    except ConnectionDoesNotExist as e:
        raise ConfigurationError(str(e)) from e
    check_vendor(connection)
    at = connection.settings_dict
    user = quote(at["USER"], safe="") + (f":{quote(at['PASSWORD'], safe='')}" if at["PASSWORD"] else "")
    query = {name: str(value) for name, value in at.get("OPTIONS", {}).items() if name in URL_OPTIONS}
    host = str(at["HOST"])
    if host.startswith("/"):  # a directory of sockets
        query["host"], host = host, ""
    port = f":{at['PORT']}" if at["PORT"] and host else ""
    if at["PORT"] and not host:
        query["port"] = str(at["PORT"])
    authority = f"{user}@{host}{port}" if user else f"{host}{port}"
    return f"postgresql://{authority}/{quote(at['NAME'] or '', safe='')}" + (f"?{urlencode(query)}" if query else "")
