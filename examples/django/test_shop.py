"""The shop, served on a port, with customers on real connections."""

import asyncio
import contextlib
import os

import httpx
import pytest
import uvicorn

from sio_pg_adapter import AsyncClient
from sio_pg_adapter.embedded import EmbeddedPostgres


@pytest.fixture(scope="session", autouse=True)
def database():
    """Migrate the database of PGHOST and PGDATABASE, or a temporary one."""
    with contextlib.ExitStack() as stack:
        if "PGHOST" not in os.environ:
            pg = stack.enter_context(EmbeddedPostgres())
            os.environ |= {"PGHOST": pg.host, "PGPORT": str(pg.port), "PGUSER": "app", "PGDATABASE": "app"}
        os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        call_command("makemigrations", check=True, dry_run=True, verbosity=0)
        yield


@pytest.fixture(scope="session")
async def url():
    from shop.asgi import application

    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="warning", timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done()
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


@pytest.fixture
async def shop(url):
    async with httpx.AsyncClient(base_url=url, headers={"Host": "127.0.0.1"}) as client:
        yield client


class Customer:
    def __init__(self, name):
        self.client = AsyncClient(reconnection_delay=0.1)
        self.received = asyncio.Queue()
        self.back = asyncio.Event()
        self.gone = asyncio.Event()
        self.client.on("*", lambda event, data: self.received.put_nowait((event, data["id"])))
        self.client.on("connect", self.back.set)
        self.client.on("disconnect", lambda _reason: self.gone.set())

    async def next_event(self):
        return await asyncio.wait_for(self.received.get(), 20)


@pytest.fixture
async def ada(url):
    customer = Customer("ada")
    await customer.client.connect(url, auth={"customer": "ada"})
    yield customer
    await customer.client.disconnect()


async def order(shop, customer, price):
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


async def test_an_order_through_the_connection(ada):
    number = await ada.client.call("order", ("ada", 5), timeout=20)
    assert await ada.next_event() == ("ordered", number)


async def test_a_customer_who_was_away_receives_what_was_missed(shop, ada):
    ada.back.clear()
    await ada.client.eio.ws.close()  # the connection drops
    await ada.gone.wait()
    number = await order(shop, "ada", 7)
    await asyncio.wait_for(ada.back.wait(), 20)
    assert ada.client.recovered()
    assert await ada.next_event() == ("ordered", number)


async def test_a_client_without_a_customer_is_refused(url):
    with pytest.raises(Exception, match="failed to connect"):
        await AsyncClient().connect(url)
