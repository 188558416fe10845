"""The roles of the tests: one owns the tables, one is the nodes'. Neither has rights that the documentation does not
give it."""

from __future__ import annotations

import re

import psycopg

from sio_pg_adapter.embedded import EmbeddedPostgres
from support.documents import block

OWNER = "siopg_owner"
"""The role that owns the tests' databases and migrates them. It has no other right."""

NODE = "siopg_node"
"""The role of the nodes. It has the rights that docs/transactions.md grants to a node, and no other."""


def grants(node: str, emitter: str | None = None) -> str:
    """Return the documented grants, to be run by the owner, with the names of a test's own roles.

    :param emitter: ``None`` leaves out the role that may only emit.
    """
    text = block("sql", "-- roles", "docs/transactions.md")
    text = text.replace("sio_node, sio_emitter", f"{node}, {emitter}" if emitter else node)
    return re.sub(r"\bsio_node\b", node, text)


def node_dsn(dsn: str) -> str:
    """Return a DSN of the same database for nodes.

    :param dsn: of the owner. If it has a password, NODE has the same.
    """
    return re.sub(r"^(\w+://)[^:@/]*", rf"\g<1>{NODE}", dsn)


def admit_nodes(server: EmbeddedPostgres, dbname: str = "app") -> str:
    """Give NODE its rights in a migrated database of the role "app", and return the DSN for nodes."""
    with psycopg.connect(server.admin_dsn(dbname), autocommit=True) as admin:
        if not admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [NODE]).fetchone():
            admin.execute(f"CREATE ROLE {NODE} LOGIN")
    with psycopg.connect(server.dsn(dbname)) as owner:
        owner.execute(grants(NODE))
    return node_dsn(server.dsn(dbname))
