"""What a server and a database must be, for the migrations and for nodes."""

from __future__ import annotations

from .errors import ConfigurationError

NOT_POSTGRESQL = ("CockroachDB", "Yugabyte", "-YB-", "Redshift", "Spanner", "Materialize")
"""Databases that speak PostgreSQL's protocol, as their ``version()`` shows them."""


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
