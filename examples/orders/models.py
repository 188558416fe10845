"""The application's own tables."""

from __future__ import annotations

from sqlalchemy import CheckConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    __table_args__ = (CheckConstraint("credit >= 0", name="customers_credit_check"),)

    name: Mapped[str] = mapped_column(primary_key=True)
    credit: Mapped[int]


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    price: Mapped[int]
    paid: Mapped[bool] = mapped_column(default=False)


class Watcher(Base):
    """A customer who may see what happens to an order of somebody else."""

    __tablename__ = "watchers"

    order: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str] = mapped_column(primary_key=True)
