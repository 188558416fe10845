"""Rights on the tables and functions that the documentation does not give.

They come from a ``GRANT``, or from ``ALTER DEFAULT PRIVILEGES`` after the migration. The page on transactions lists
the rights that a node and an emitter need.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from sio_pg_adapter.schema.rights import FUNCTIONS, NODE_PRIVILEGES, NODE_TABLES, TRUNCATED

from . import terminal

PUBLIC = "PUBLIC"
"""The grantee that stands for every role."""

Right = tuple[str, str, str]
"""A privilege, the kind of an object ("table", "sequence" or "function") and its name."""


def unexpected_rights(rows: Iterable[Any]) -> list[dict[str, Any]]:
    """Return each role that has rights which the documentation does not give, with these rights.

    :param rows: the rows of the query "rights".
    """
    rights: dict[str, set[Right]] = defaultdict(set)
    for row in rows:
        rights[row["role"]].add((row["privilege"], row["kind"], row["name"]))
    unexpected = []
    for role, held in sorted(rights.items()):
        if surplus := _surplus(held):
            names = defaultdict(list)
            for privilege, _, name in sorted(surplus):
                names[privilege].append(name)
            unexpected.append({"role": role, "rights": dict(names)})
    return unexpected


def _surplus(held: set[Right]) -> set[Right]:
    node = {(privilege, "table", name) for privilege in NODE_PRIVILEGES for name in NODE_TABLES}
    surplus = {right for right in held if right[1:] not in {("function", name) for name in FUNCTIONS}}
    if not node <= held:  # not a node
        return surplus
    sequences = {right for right in surplus if right[1] == "sequence"}
    return surplus - node - sequences - {("TRUNCATE", "table", name) for name in TRUNCATED}


def lines(unexpected: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line of text about each role."""
    for entry in unexpected:
        rights = ", ".join(f"{privilege} on {_names(names)}" for privilege, names in entry["rights"].items())
        role = "Every role (PUBLIC)" if entry["role"] == PUBLIC else f"The role {terminal.printable(entry['role'])}"
        yield f"{role} has rights that the documentation does not give: {rights}. Revoke what it does not need."


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
