"""The application's configuration, and its system checks."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.db import connections

from sio_pg_adapter.errors import ConfigurationError

from .settings import check_vendor, read_settings


class SioPgConfig(AppConfig):
    """``sio_pg_adapter.django`` in ``INSTALLED_APPS``. It has no models, and its label is ``sio_pg``."""

    name = "sio_pg_adapter.django"
    label = "sio_pg"
    verbose_name = "Socket.IO connection state recovery"

    def ready(self) -> None:
        """Register the checks."""
        checks.register(check_settings)


def check_settings(**_: Any) -> list[checks.CheckMessage]:
    """Check the setting ``SIO_PG``: ``sio_pg.E001`` for its form, ``sio_pg.E002`` for the kind of database."""
    try:
        named = read_settings()
    except ConfigurationError as e:
        return [checks.Error(str(e), id="sio_pg.E001")]
    try:
        check_vendor(connections[named.database])
    except ConfigurationError as e:
        return [checks.Error(str(e), id="sio_pg.E002")]
    return []
