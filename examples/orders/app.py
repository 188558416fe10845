"""A shop: an order is paid in a transaction, and its customer is notified if and only if that commits."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

import socketio
from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from models import Customer, Order, Watcher
from sio_pg_adapter import AsyncPostgresManager, AsyncServer, lifespan

DATABASE_URL = os.environ["DATABASE_URL"]  # postgresql+asyncpg://...

new_session = async_sessionmaker(create_async_engine(DATABASE_URL), expire_on_commit=False)

sio = AsyncServer(
    async_mode="asgi",
    client_manager=AsyncPostgresManager(DATABASE_URL),
    connection_state_recovery=True,  # customers that are away for up to two minutes miss nothing
)


@sio.event
async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
    """Add the customer to rooms. A real shop would check a token here."""
    if not isinstance(auth, dict) or not isinstance(auth.get("customer"), str):
        raise socketio.exceptions.ConnectionRefusedError("a customer is required")
    customer = auth["customer"]
    await sio.enter_room(sid, f"customer:{customer}")
    async with new_session.begin() as session:  # the locked rows cannot be deleted before the rooms are entered
        watched = select(Watcher.order).where(Watcher.customer == customer).with_for_update(read=True)
        for number in await session.scalars(watched):
            await sio.enter_room(sid, f"order:{number}", connection=session)


async def session() -> AsyncIterator[AsyncSession]:
    async with new_session() as opened:
        yield opened


Session = Annotated[AsyncSession, Depends(session)]
app = FastAPI(lifespan=lifespan(sio))


@app.post("/orders", status_code=201)
async def place_order(customer: str, price: int, session: Session) -> dict[str, int]:
    async with session.begin():
        if await session.get(Customer, customer) is None:
            session.add(Customer(name=customer, credit=100))
        order = Order(customer=customer, price=price)
        session.add(order)
        await session.flush()
        await sio.emit("ordered", {"id": order.id}, room=f"customer:{customer}", connection=session)
    return {"id": order.id}


@app.post("/orders/{number}/pay", status_code=204)
async def pay_order(number: int, session: Session) -> None:
    try:
        async with session.begin():
            order = await session.get(Order, number, with_for_update=True)
            if order is None or order.paid:
                raise HTTPException(409, "there is nothing to pay")
            order.paid = True
            rooms = [f"customer:{order.customer}", f"order:{number}"]
            await sio.emit("paid", {"id": number}, room=rooms, connection=session)
            customer = await session.get_one(Customer, order.customer, with_for_update=True)
            customer.credit -= order.price
    except IntegrityError as e:  # not enough credit: nothing is paid, and no event is sent
        raise HTTPException(402, "not enough credit") from e


@app.put("/orders/{number}/watchers/{customer}", status_code=204)
async def watch_order(number: int, customer: str, session: Session) -> None:
    async with session.begin():
        session.add(Watcher(order=number, customer=customer))
        await sio.sockets_join(f"customer:{customer}", f"order:{number}", connection=session)


@app.delete("/orders/{number}/watchers/{customer}", status_code=204)
async def unwatch_order(number: int, customer: str, session: Session) -> None:
    async with session.begin():
        await session.delete(await session.get_one(Watcher, (number, customer)))
        await sio.sockets_leave(f"customer:{customer}", f"order:{number}", connection=session)


asgi = socketio.ASGIApp(sio, app)  # uvicorn serves this
