"""The shop, served on a port, with customers on real connections."""

import contextlib
import os
import queue
import socket
import threading

import httpx
import pytest
from flask_migrate import check, upgrade
from werkzeug.serving import make_server

from sio_pg_adapter import Client
from sio_pg_adapter.embedded import EmbeddedPostgres


@pytest.fixture(scope="session")
def app():
    """Migrate the database that DATABASE_URL names, or a temporary one."""
    with contextlib.ExitStack() as stack:
        if "DATABASE_URL" not in os.environ:
            pg = stack.enter_context(EmbeddedPostgres())
            os.environ["DATABASE_URL"] = pg.dsn(scheme="postgresql+psycopg")
        from app import create_app, db, socketio

        app = create_app()
        with app.app_context():
            upgrade()
            check()
        yield app
        socketio.server.shutdown()
        with app.app_context():
            db.engine.dispose()


@pytest.fixture(scope="session")
def url(app):
    server = make_server("127.0.0.1", 0, app, threaded=True)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.fixture
def shop(url):
    with httpx.Client(base_url=url, timeout=20) as client:
        yield client


class Customer:
    def __init__(self):
        self.client = Client(reconnection_delay=0.1)
        self.received = queue.Queue()
        self.back = threading.Event()
        self.gone = threading.Event()
        self.client.on("orders", lambda _numbers: None)
        self.client.on("*", lambda event, data: self.received.put((event, data["id"])))
        self.client.on("connect", self.back.set)
        self.client.on("disconnect", lambda _reason: self.gone.set())

    def next_event(self):
        return self.received.get(timeout=20)


@pytest.fixture
def ada(url):
    customer = Customer()
    customer.client.connect(url, auth={"customer": "ada"}, transports=["websocket"])
    yield customer
    customer.client.disconnect()


def order(shop, customer, price):
    return shop.post("/orders", params={"customer": customer, "price": price}).json()["id"]


def test_a_customer_who_paid_is_notified(shop, ada):
    number = order(shop, "ada", 10)
    assert ada.next_event() == ("ordered", number)
    assert shop.post(f"/orders/{number}/pay").status_code == 204
    assert ada.next_event() == ("paid", number)
    assert shop.post(f"/orders/{number}/pay").status_code == 409


def test_a_payment_that_fails_sends_nothing(shop, ada):
    dear = order(shop, "ada", 1_000)
    cheap = order(shop, "ada", 1)
    assert shop.post(f"/orders/{dear}/pay").status_code == 402
    assert shop.post(f"/orders/{cheap}/pay").status_code == 204
    received = [ada.next_event() for _ in range(3)]
    assert received == [("ordered", dear), ("ordered", cheap), ("paid", cheap)]


def test_a_customer_who_was_away_receives_what_was_missed(shop, ada):
    ada.back.clear()
    ada.client.eio.ws.get_extra_info("socket").shutdown(socket.SHUT_RDWR)  # the connection drops
    assert ada.gone.wait(20)
    number = order(shop, "ada", 7)
    assert ada.back.wait(20)
    assert ada.client.recovered()
    assert ada.next_event() == ("ordered", number)


def test_the_test_client(app):
    from app import socketio

    client = socketio.test_client(app, auth={"customer": "bob"})
    assert [event["name"] for event in client.get_received()] == ["orders"]
    assert not socketio.test_client(app).is_connected()
