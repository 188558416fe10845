"""The shop, served on a port, with customers on real connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import httpx
import pytest
import uvicorn
from alembic import command
from alembic.config import Config

from sio_pg_adapter import AsyncClient
from sio_pg_adapter.embedded import EmbeddedPostgres

ALEMBIC = Config(Path(__file__).with_name("alembic.ini"))


@pytest.fixture(scope="session", autouse=True)
def database():
    """Migrate the database that DATABASE_URL names, or start a temporary one."""
    with contextlib.ExitStack() as stack:
        if "DATABASE_URL" not in os.environ:
            pg = stack.enter_context(EmbeddedPostgres())
            os.environ["DATABASE_URL"] = pg.dsn(scheme="postgresql+asyncpg")
        command.upgrade(ALEMBIC, "heads")
        yield


@pytest.fixture(scope="session")
async def url():
    from app import asgi

    server = uvicorn.Server(uvicorn.Config(asgi, port=0, log_level="warning", timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done()
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


@pytest.fixture
async def shop(url):
    async with httpx.AsyncClient(base_url=url) as client:
        yield client


class Customer:
    def __init__(self, name: str) -> None:
        self.client = AsyncClient(reconnection_delay=0.1)
        self.received: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self.back = asyncio.Event()
        self.gone = asyncio.Event()
        self.client.on("*", lambda event, data: self.received.put_nowait((event, data["id"])))
        self.client.on("connect", self.back.set)
        self.client.on("disconnect", lambda _reason: self.gone.set())
        self.name = name

    async def next_event(self) -> tuple[str, int]:
        return await asyncio.wait_for(self.received.get(), 20)


@pytest.fixture
async def ada(url):
    customer = Customer("ada")
    await customer.client.connect(url, auth={"customer": "ada"})
    yield customer
    await customer.client.disconnect()


async def order(shop, customer: str, price: int) -> int:
    return (await shop.post("/orders", params={"customer": customer, "price": price})).json()["id"]


async def test_a_customer_who_paid_is_notified(shop, ada):
    number = await order(shop, "ada", 10)
    assert await ada.next_event() == ("ordered", number)
    assert (await shop.post(f"/orders/{number}/pay")).status_code == 204
    assert await ada.next_event() == ("paid", number)
    assert (await shop.post(f"/orders/{number}/pay")).status_code == 409


async def test_a_payment_that_fails_sends_nothing(shop, ada):
    dear = await order(shop, "ada", 1_000)
    cheap = await order(shop, "ada", 1)
    assert (await shop.post(f"/orders/{dear}/pay")).status_code == 402
    assert (await shop.post(f"/orders/{cheap}/pay")).status_code == 204
    received = [await ada.next_event() for _ in range(3)]
    assert received == [("ordered", dear), ("ordered", cheap), ("paid", cheap)]


async def test_a_customer_does_not_receive_the_events_of_others(shop, ada):
    await order(shop, "bob", 5)
    number = await order(shop, "ada", 5)
    assert await ada.next_event() == ("ordered", number)


async def test_a_customer_who_was_away_receives_what_was_missed(shop, ada):
    ada.back.clear()
    await ada.client.eio.ws.close()  # the connection drops
    await ada.gone.wait()
    number = await order(shop, "ada", 7)
    await asyncio.wait_for(ada.back.wait(), 20)
    assert ada.client.recovered()
    assert await ada.next_event() == ("ordered", number)


@pytest.mark.parametrize("away", [False, True])
async def test_a_watcher_receives_what_commits_before_the_right_is_taken_away(shop, ada, away):
    numbers = [await order(shop, "bob", 1) for _ in range(2)]
    for number in numbers:
        assert (await shop.put(f"/orders/{number}/watchers/ada")).status_code == 204
    if away:
        ada.back.clear()
        await ada.client.eio.ws.close()
        await ada.gone.wait()
    assert (await shop.post(f"/orders/{numbers[0]}/pay")).status_code == 204
    for number in numbers:
        assert (await shop.delete(f"/orders/{number}/watchers/ada")).status_code == 204
    assert (await shop.post(f"/orders/{numbers[1]}/pay")).status_code == 204
    own = await order(shop, "ada", 1)
    if away:
        await asyncio.wait_for(ada.back.wait(), 20)
        assert ada.client.recovered()
    assert [await ada.next_event(), await ada.next_event()] == [("paid", numbers[0]), ("ordered", own)]


async def test_a_customer_who_connects_watches_what_may_be_watched(shop, url):
    number, other = [await order(shop, "bob", 1) for _ in range(2)]
    await shop.put(f"/orders/{number}/watchers/eve")
    eve = Customer("eve")
    await eve.client.connect(url, auth={"customer": "eve"})
    await shop.post(f"/orders/{other}/pay")
    await shop.post(f"/orders/{number}/pay")
    assert await eve.next_event() == ("paid", number)
    await eve.client.disconnect()


def test_autogenerate_finds_nothing():
    command.check(ALEMBIC)
