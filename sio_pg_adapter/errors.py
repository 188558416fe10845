"""The errors that this package raises, in one tree::

    SioPgError
    ├── ConfigurationError     an option, a DSN or a schema name is wrong
    ├── NotSerializable        a value or a name cannot be stored as it is
    ├── PayloadTooLarge        an event is larger than the log takes
    ├── SchemaMismatch         the database is not migrated, or by an incompatible version
    └── StoreUnavailable       the database cannot be reached, or did not answer

All are raised before anything is stored or sent, but for :class:`StoreUnavailable`, which says so itself.
"""

from __future__ import annotations


class SioPgError(Exception):
    """The base of all errors of this package."""


class ConfigurationError(SioPgError, ValueError):
    """An option, a DSN or a name is wrong. The message names it and what it takes."""


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
