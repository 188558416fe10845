"""A Django application: its migrations make the tables, and its servers run handlers as Django runs views.

Add ``"sio_pg_adapter.django"`` to ``INSTALLED_APPS``. The setting ``SIO_PG`` is optional::

    SIO_PG = {"DATABASE": "default", "SCHEMA": "public"}

Events and changes of rooms are part of a transaction by ``emit(django.db.connection, ...)`` and its relatives, which
need nothing of this package.
"""

from __future__ import annotations

from .server import AsyncServer, Server
from .settings import database_url

__all__ = ["AsyncServer", "Server", "database_url"]
