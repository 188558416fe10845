"""The errors that this package raises, in one tree::

    SioPgError
    ├── ConfigurationError     an option, a DSN or a schema name is wrong
    │   └── PositionInvalid    a position is malformed, forged, or of another namespace
    ├── HandlerFailed          a handler of a server event failed on another node
    ├── NoAnswer               nodes or clients did not answer in time; carries the answers that arrived
    ├── NotSerializable        a value or a name cannot be stored as it is
    ├── PayloadTooLarge        an event is larger than the log accepts
    ├── PositionLost           events after a position are no longer stored, or too many to be sent
    ├── SchemaMismatch         the database is not migrated, or its tables are of an incompatible version
    ├── SessionConflict        a session was changed elsewhere while it was being changed here
    └── StoreUnavailable       the database cannot be reached, or it did not answer

Most are raised before anything is stored or sent. There are three exceptions. :class:`StoreUnavailable` says whether
the change may be stored. After :class:`NoAnswer` and :class:`HandlerFailed`, some nodes or clients may have acted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import socketio.exceptions


class SioPgError(Exception):
    """The base class of all errors of this package."""


class ConfigurationError(SioPgError, ValueError):
    """An option, a DSN or a name is wrong. The message names it and says what it accepts."""


class NoAnswer(SioPgError, socketio.exceptions.TimeoutError, TimeoutError):
    """Some nodes or clients did not answer in time, or were gone before they could answer.

    :ivar missing: ids of the nodes, or sids of the clients, that did not answer.
    :ivar missing_nodes: the nodes among them. The clients that such a node asked are unknown.
    :ivar answers: the answers of the others, in the form in which the call would have returned them.
    """

    def __init__(self, asked: str, kind: str, missing: Iterable[str], answers: Any, also: Iterable[str] = ()) -> None:
        silent, clients = sorted(missing), sorted(also)
        self.missing = [*silent, *clients]
        self.missing_nodes = silent if kind == "node" else []
        self.answers = answers
        text = f"{asked}: no answer from {_counted(silent, kind)}"
        if clients:
            text += f" and from {_counted(clients, 'client')}"
        if self.missing_nodes:
            text += ". Run `sio-pg status` to see the state of the nodes"
        super().__init__(text)


class HandlerFailed(SioPgError):
    """Handlers of a server event failed on other nodes. The logs of those nodes have the tracebacks.

    :ivar errors: a description of each failure, by node id.
    :ivar answers: what the handlers of the other nodes returned, by node id.
    """

    def __init__(self, asked: str, errors: Mapping[str, str], answers: Mapping[str, Any]) -> None:
        failures = "; ".join(f"node {node}: {error}" for node, error in sorted(errors.items()))
        super().__init__(f"{asked} failed on {_plural(len(errors), 'node')}. {failures}")
        self.errors = dict(errors)
        self.answers = dict(answers)


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _counted(names: list[str], noun: str) -> str:
    return f"{_plural(len(names), noun)} ({', '.join(names[:10])}{', ...' if len(names) > 10 else ''})"


class NotSerializable(SioPgError, TypeError):
    """A value has no JSON form, or a name is not text. The message names the key or the argument."""


class PayloadTooLarge(SioPgError, ValueError):
    """An event or a session is larger than the database stores in one value."""


class PositionInvalid(socketio.exceptions.ConnectionRefusedError, ConfigurationError):
    """A position is malformed, forged, or of another namespace.

    It often comes from a client. If a connect handler or a middleware does not catch the error, the client is
    refused, and its ``connect_error`` event has the message.
    """


class PositionLost(SioPgError, socketio.exceptions.ConnectionRefusedError):
    """Not all events after a position can be sent. Some are no longer stored, or there are too many.

    The application loads its state again, with a position. If a connect handler or a middleware does not catch the
    error, the client is refused, and its ``connect_error`` event has the message.
    """


class SchemaMismatch(SioPgError):
    """The tables are missing, or they are of another version. The message names the command to run."""


class SessionConflict(SioPgError):
    """A session was changed elsewhere while a ``sio.session(sid)`` block was changing it. Nothing was saved."""


_OUTCOMES = {True: " (may be stored)", False: " (nothing was stored)", None: ""}


class StoreUnavailable(SioPgError, ConnectionError):
    """The database cannot be reached, or it did not answer in time.

    :param message: what was tried, and what failed.
    :param may_be_stored: ``True`` if the change may have been committed all the same. The connection was lost during
                          the commit, and its outcome could not be determined. ``False`` if nothing was stored and it
                          is safe to try again. ``None`` if there was nothing to store, as in a read.
    :ivar may_be_stored: ``True`` or ``False``, as above; ``False`` for a read.
    """

    def __init__(self, message: str, *, may_be_stored: bool | None = False) -> None:
        for outcome in filter(None, _OUTCOMES.values()):  # of an error that this one wraps
            message = message.removesuffix(outcome)
        super().__init__(message)
        self.may_be_stored = bool(may_be_stored)
        self._outcome = _OUTCOMES[may_be_stored]

    def __str__(self) -> str:
        return f"{self.args[0]}{self._outcome}"
