"""Requirements on a server, a database and a connection, for the migrations and for nodes."""

from __future__ import annotations

from .errors import ConfigurationError

NOT_POSTGRESQL = ("CockroachDB", "Yugabyte", "-YB-", "Redshift", "Spanner", "Materialize")
"""Databases that speak PostgreSQL's protocol, as their ``version()`` shows them."""


KEEPALIVES = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
"""Settings of connections: the server notices in seconds that its client has vanished, and gives its locks back."""


def keepalives_sql(*, local: bool) -> str:
    """Return the statement that sets :data:`KEEPALIVES` on a connection. They have no effect on a socket file.

    :param local: whether they end with the transaction.
    """
    calls = (f"set_config('{name}', '{value}', {str(local).lower()})" for name, value in KEEPALIVES.items())
    return f"SELECT {', '.join(calls)}"


def check_support(version: str, encoding: str, hidden: str | None = None) -> None:
    """Refuse what is not PostgreSQL, a database that cannot store all text, and tables with hidden rows.

    :raises ConfigurationError: saying what to do.
    """
    if others := [name for name in NOT_POSTGRESQL if name.lower() in version.lower()]:
        raise ConfigurationError(
            f"the server is {others[0]}, where advisory locks or sequences do not keep order. Use PostgreSQL."
        )
    if encoding != "UTF8":
        raise ConfigurationError(
            f"the encoding of the database is {encoding}, which cannot store all names and events. Create a database "
            "with ENCODING 'UTF8' TEMPLATE template0."
        )
    if hidden:
        raise ConfigurationError(
            f"row level security hides rows of {hidden} from this role. Run ALTER TABLE ... DISABLE ROW LEVEL "
            "SECURITY on them, or give the node the role that owns the tables."
        )
