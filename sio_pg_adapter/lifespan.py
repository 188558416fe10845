"""The manager's life as that of an ASGI application."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.manager import AsyncPostgresManager


class lifespan:  # noqa: N801 - used as a function
    """Start the manager with the application, and stop server and manager with it.

    ``FastAPI(lifespan=lifespan(sio))``, and the same for Starlette; or ``async with lifespan(sio):`` in a
    lifespan of the application's own.

    :param sio: an ``AsyncServer`` with an ``AsyncPostgresManager``.
    :raises StoreUnavailable: at the start: the application then does not start.
    :raises SchemaMismatch: likewise.
    """

    def __init__(self, sio: Any) -> None:
        if not isinstance(getattr(sio, "manager", None), AsyncPostgresManager):
            raise ConfigurationError("lifespan() takes a server with client_manager=AsyncPostgresManager(...)")
        self._sio = sio

    @contextlib.asynccontextmanager
    async def __call__(self, _app: Any = None) -> AsyncIterator[None]:
        async with self:
            yield

    async def __aenter__(self) -> None:
        await self._sio.manager.start()

    async def __aexit__(self, *exc: object) -> None:
        await self._sio.shutdown()
