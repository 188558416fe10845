"""The Socket.IO server of the shop."""

from django.db import connection, transaction
from socketio.exceptions import ConnectionRefusedError

from shop.models import Customer, Order
from sio_pg_adapter import emit, enter_room
from sio_pg_adapter.django import AsyncServer

sio = AsyncServer(connection_state_recovery=True)  # customers that are away for up to two minutes miss nothing


@sio.event
def connect(sid, environ, auth):
    """Add the customer to a room. A real shop would check a token or a session here."""
    if not isinstance(auth, dict) or not isinstance(auth.get("customer"), str):
        raise ConnectionRefusedError("a customer is required")
    enter_room(connection, sid, f"customer:{auth['customer']}")


@sio.event
def order(sid, name, price):
    """Place an order. A plain function runs in a thread, so it may use the ORM."""
    with transaction.atomic():
        customer, _ = Customer.objects.get_or_create(name=name)
        number = Order.objects.create(customer=customer, price=price).pk
        emit(connection, "ordered", {"id": number}, room=f"customer:{name}")
    return number
