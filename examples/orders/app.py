"""A shop: an order is paid in a transaction, and its customer is told live, if and only if that commits."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

import socketio
from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from models import Customer, Order
from sio_pg_adapter import AsyncPostgresManager, AsyncServer, lifespan

DATABASE_URL = os.environ["DATABASE_URL"]  # postgresql+asyncpg://...

new_session = async_sessionmaker(create_async_engine(DATABASE_URL), expire_on_commit=False)

sio = AsyncServer(
    async_mode="asgi",
    client_manager=AsyncPostgresManager(DATABASE_URL),
    connection_state_recovery=True,  # who was away for less than two minutes misses nothing
)


@sio.event
async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
    """A real shop would look at a token here; this one believes its customers."""
    if not isinstance(auth, dict) or not isinstance(auth.get("customer"), str):
        raise socketio.exceptions.ConnectionRefusedError("say who you are")
    await sio.enter_room(sid, f"customer:{auth['customer']}")


async def session() -> AsyncIterator[AsyncSession]:
    async with new_session() as one:
        yield one


Session = Annotated[AsyncSession, Depends(session)]
app = FastAPI(lifespan=lifespan(sio))


@app.post("/orders", status_code=201)
async def order(customer: str, price: int, session: Session) -> dict[str, int]:
    async with session.begin():
        if await session.get(Customer, customer) is None:
            session.add(Customer(name=customer, credit=100))
        one = Order(customer=customer, price=price)
        session.add(one)
        await session.flush()
        await sio.emit("ordered", {"id": one.id}, room=f"customer:{customer}", connection=session)
    return {"id": one.id}


@app.post("/orders/{number}/pay", status_code=204)
async def pay(number: int, session: Session) -> None:
    try:
        async with session.begin():
            one = await session.get(Order, number, with_for_update=True)
            if one is None or one.paid:
                raise HTTPException(409, "there is nothing to pay")
            one.paid = True
            await sio.emit("paid", {"id": number}, room=f"customer:{one.customer}", connection=session)
            customer = await session.get_one(Customer, one.customer, with_for_update=True)
            customer.credit -= one.price
    except IntegrityError as e:  # not enough credit: nothing is paid, and nobody is told that it was
        raise HTTPException(402, "not enough credit") from e


asgi = socketio.ASGIApp(sio, app)  # what uvicorn serves
