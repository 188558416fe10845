"""The lifespan of an ASGI application whose database is away."""

from __future__ import annotations

import socket
import traceback

import pytest

from sio_pg_adapter import AsyncPostgresManager, AsyncServer, ConfigurationError, StoreUnavailable, lifespan


async def test_a_failed_start_shows_one_error_without_the_frames_below_it():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        dsn = f"postgresql://app@127.0.0.1:{taken.getsockname()[1]}/app"
        sio = AsyncServer(async_mode="asgi", client_manager=AsyncPostgresManager(dsn))
        with pytest.raises(StoreUnavailable) as raised:
            async with lifespan(sio)(None):
                pass
    printed = "".join(traceback.format_exception(raised.value))
    assert printed.count("Traceback") == 1 and "asyncpg/" not in printed
    assert "Connect call failed" in printed.splitlines()[-1]


def test_a_server_with_another_manager_is_refused():
    with pytest.raises(ConfigurationError, match="client_manager=AsyncPostgresManager"):
        lifespan(object())
