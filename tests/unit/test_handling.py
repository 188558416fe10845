"""Whose handler is running, in the handler, in its tasks, and in tasks that outlive it."""

from __future__ import annotations

import asyncio

import pytest

from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.local.handling import handled, handling, refuse_in_connect
from support.local import client_of


async def test_a_handler_is_about_its_client_while_it_runs():
    outer, inner = client_of("a"), client_of("b")
    assert handled() is None
    with handling(outer):
        assert handled() is outer
        with handling(inner):
            assert handled() is inner
        assert handled() is outer
    assert handled() is None


async def test_a_handler_that_raises_has_ended():
    with pytest.raises(ValueError, match="broken"), handling(client_of("a")):
        raise ValueError("broken")
    assert handled() is None


async def test_a_task_of_a_handler_is_about_its_client_until_the_handler_ends():
    client, ended, seen = client_of("a"), asyncio.Event(), []

    async def work():
        seen.append(handled())
        await ended.wait()
        seen.append(handled())

    with handling(client):
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
    ended.set()
    await task
    assert seen == [client, None]


async def test_a_task_that_outlives_its_handler_is_not_about_the_next_one():
    seen = []

    async def work(ended):
        await ended.wait()
        seen.append(handled())

    ended = asyncio.Event()
    with handling(client_of("a")):
        task = asyncio.create_task(work(ended))
    with handling(client_of("b")):
        ended.set()
        await task
    assert seen == [None]


async def test_handlers_that_run_at_the_same_time_are_about_their_own_clients():
    a, b = client_of("a"), client_of("b")

    async def handler(client):
        with handling(client):
            await asyncio.sleep(0)
            return handled()

    assert await asyncio.gather(handler(a), handler(b)) == [a, b]


async def test_a_change_in_a_transaction_is_refused_until_the_connect_of_its_client_is_answered():
    client = client_of("a")
    refuse_in_connect("leave_room", "a", "/")
    with handling(client):
        with pytest.raises(ConfigurationError, match=r"^leave_room\(\) takes no connection="):
            refuse_in_connect("leave_room", "a", "/")
        refuse_in_connect("leave_room", "b", "/")
        refuse_in_connect("leave_room", "a", "/other")
        client.answered()
        refuse_in_connect("leave_room", "a", "/")
