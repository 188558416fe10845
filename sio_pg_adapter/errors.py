"""The errors that this package raises, in one tree::

    SioPgError
    ├── ConfigurationError     an option, a DSN or a schema name is wrong
    ├── HandlerFailed          a handler of a server event failed on another node
    ├── NoAnswer               nodes or clients did not answer in time; has the answers that came
    ├── NotSerializable        a value or a name cannot be stored as it is
    ├── PayloadTooLarge        an event is larger than the log takes
    ├── SchemaMismatch         the database is not migrated, or by an incompatible version
    └── StoreUnavailable       the database cannot be reached, or did not answer

All are raised before anything is stored or sent, but for :class:`StoreUnavailable`, which says so itself, and for
:class:`NoAnswer` and :class:`HandlerFailed`: those asked may have done it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import socketio.exceptions


class SioPgError(Exception):
    """The base of all errors of this package."""


class ConfigurationError(SioPgError, ValueError):
    """An option, a DSN or a name is wrong. The message names it and what it takes."""


class NoAnswer(SioPgError, socketio.exceptions.TimeoutError, TimeoutError):  # noqa: N818 - part of the public face
    """Not all who were asked have answered, in time or before they were gone.

    :ivar missing: who has not: ids of nodes, or sids of clients.
    :ivar missing_nodes: the nodes among them. Whom such a node asked, it has not told.
    :ivar answers: what the others answered, as the call would have returned it.
    """

    def __init__(self, asked: str, who: str, missing: Iterable[str], answers: Any, also: Iterable[str] = ()) -> None:
        named, more = sorted(missing), sorted(also)
        self.missing = [*named, *more]
        self.missing_nodes = named if who == "node" else []
        self.answers = answers
        clients = f", and of {len(more)} client(s): {_some(more)}" if more else ""
        super().__init__(f"{asked}: no answer of {len(named)} {who}(s): {_some(named)}{clients}")


class HandlerFailed(SioPgError):  # noqa: N818 - the name is part of the public face
    """Handlers of a server event failed on other nodes, whose logs say more.

    :ivar errors: what failed, in words, by node id.
    :ivar answers: what the handlers of the other nodes returned, by node id.
    """

    def __init__(self, asked: str, errors: Mapping[str, str], answers: Mapping[str, Any]) -> None:
        super().__init__(f"{asked}: {'; '.join(f'node {node}: {error}' for node, error in sorted(errors.items()))}")
        self.errors = dict(errors)
        self.answers = dict(answers)


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


class NotSerializable(SioPgError, TypeError):  # noqa: N818 - the name is part of the public face
    """A value has no JSON form, or a name is not text. The message names the key or the argument."""


class PayloadTooLarge(SioPgError, ValueError):  # noqa: N818 - the name is part of the public face
    """An event or a session is larger than the database stores in one value."""


class SchemaMismatch(SioPgError):  # noqa: N818 - the name is part of the public face
    """The tables are missing, or of another version. The message names the command that mends it."""


class StoreUnavailable(SioPgError, ConnectionError):  # noqa: N818 - the name is part of the public face
    """The database cannot be reached, or did not answer in time.

    :param message: what was tried and what failed.
    :param may_be_stored: ``True`` if the change may have been committed all the same: the connection was
                          lost while the commit was under way and its outcome could not be found out.
                          ``False``: nothing is stored, and it is safe to try again.
    """

    def __init__(self, message: str, *, may_be_stored: bool = False) -> None:
        super().__init__(f"{message} ({'may be stored' if may_be_stored else 'nothing was stored'})")
        self.may_be_stored = may_be_stored
