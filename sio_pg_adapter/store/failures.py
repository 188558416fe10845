"""What the errors of asyncpg mean here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import asyncpg

from sio_pg_adapter.addresses import ENCODED
from sio_pg_adapter.errors import ConfigurationError, SchemaMismatch, SioPgError, StoreUnavailable

LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a statement that began between the server's farewell and the connection's end
    asyncpg.OperatorInterventionError,  # shut down, terminated, starting up, cancelled
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby: after a failover the primary is elsewhere
    OSError,
    TimeoutError,
)
"""Errors that mean that the database cannot be reached, or did not answer."""

BROKEN = (asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresConnectionError, OSError)
"""Errors after which a connection cannot be used any more."""

ENDED = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.AdminShutdownError,
    ConnectionError,
)
"""Errors of a statement whose backend has ended, which may have been while nobody used the connection."""

UNMIGRATED = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedColumnError,
    asyncpg.InvalidSchemaNameError,
)
"""Errors that mean that the tables are missing, or of another version."""

NODE_RIGHTS = "Grant the role the rights of a node, see Roles in docs/transactions.md"

VALUE_AT_FAULT = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError)
"""Errors of PostgreSQL about a value. Another connection would give them, too."""

OPEN = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalServerError,
)
"""Errors that a server or a pooler may send although a commit was done: classes 08, 57, 58 and XX."""


def is_about_value(error: BaseException) -> bool:
    """Whether an error is about a value.

    A full queue of notifications has the class of a limit (async.c), and is not the value's fault.
    """
    return isinstance(error, VALUE_AT_FAULT) and "NOTIFY" not in str(error)


class OutcomeUnknown(Exception):
    """Whether a batch is in the log that this node follows is not known. Most often its connection was lost."""


@contextlib.contextmanager
def translated(doing: str, *, may_be_stored: bool | None = False) -> Iterator[None]:
    """Raise the errors of asyncpg as this package's, with their cause. For statements that store no event.

    :param may_be_stored: as in :class:`~sio_pg_adapter.errors.StoreUnavailable`. ``None`` for a read.
    """
    try:
        yield
    except SioPgError:  # translated already. StoreUnavailable is an OSError, too
        raise
    except asyncpg.PostgresError as e:
        raise refusal(doing, e, may_be_stored=may_be_stored) from e
    except LOST as e:
        raise StoreUnavailable(f"{doing}: {type(e).__name__}: {e}".rstrip(": "), may_be_stored=may_be_stored) from e


def lacks_rights(error: BaseException) -> bool:
    """Whether the role lacks a right on the package's tables or functions, and not that to connect."""
    return isinstance(error, asyncpg.InsufficientPrivilegeError) and " sio_" in str(error)


def refusal(doing: str, error: asyncpg.PostgresError, *, may_be_stored: bool | None = False) -> SioPgError:
    """Return the error for an answer of the server that says that it did nothing."""
    if isinstance(error, UNMIGRATED):
        return SchemaMismatch(f"{doing}: {error}. Run `sio-pg migrate` to bring the database to this version.")
    said = f"{doing}: {type(error).__name__}: {error}"
    if lacks_rights(error):
        said = f"{said}. {NODE_RIGHTS}"
    return StoreUnavailable(said, may_be_stored=may_be_stored)


@contextlib.contextmanager
def connecting(option: str) -> Iterator[None]:
    """Raise the errors of a connect as this package's, including those about the address.

    :param option: the option that gave the address.
    """
    with translated("connecting to PostgreSQL", may_be_stored=None):
        try:
            yield
        except asyncpg.ClientConfigurationError as e:
            raise ConfigurationError(f"{option} is wrong: {e}") from e
        except (ValueError, OverflowError) as e:
            if isinstance(e, SioPgError | asyncpg.InterfaceError):
                raise
            # Without the cause, which shows what it failed at: behind a / in a password, a piece of the password.
            raise ConfigurationError(
                f"{option} is wrong: its host or port cannot be read ({type(e).__name__}). {ENCODED}"
            ) from None


def unknown_outcome(error: Exception) -> OutcomeUnknown | None:
    """Return what an error says if it leaves the outcome of a statement open. ``None``: nothing was done."""
    if isinstance(error, asyncpg.PostgresError):
        if not isinstance(error, OPEN):
            return None  # an answer of the server: rolled back
    elif not isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError | OSError | TimeoutError):
        return None
    return OutcomeUnknown(f"{type(error).__name__}: {error}")
