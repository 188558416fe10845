"""A shop: an order is paid in a transaction, and its customer is notified if and only if that commits."""

import os

from flask import Flask, request
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import CheckConstraint
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sio_pg_adapter import schema
from sio_pg_adapter.flask import ConnectionRefusedError, SocketIO, emit, join_room, recovered


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
socketio = SocketIO(connection_state_recovery=True)  # customers that are away for up to two minutes miss nothing


class Customer(db.Model):
    __tablename__ = "customers"
    __table_args__ = (CheckConstraint("credit >= 0", name="enough_credit"),)

    name: Mapped[str] = mapped_column(primary_key=True)
    credit: Mapped[int] = mapped_column(default=100)


class Order(db.Model):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    price: Mapped[int]
    paid: Mapped[bool] = mapped_column(default=False)


def create_app():
    app = Flask(__name__)
    app.config["SECRET_KEY"] = os.environ.get("SECRET_KEY", "for development only")
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]  # postgresql+psycopg://...
    db.init_app(app)
    Migrate(app, db, include_object=schema.include_object)  # --autogenerate ignores the package's tables
    app.add_url_rule("/orders", view_func=place_order, methods=["POST"])
    app.add_url_rule("/orders/<int:number>/pay", view_func=pay_order, methods=["POST"])
    socketio.init_app(app)
    return app


def place_order():
    name = request.args["customer"]
    if db.session.get(Customer, name) is None:
        db.session.add(Customer(name=name))
    order = Order(customer=name, price=int(request.args["price"]))
    db.session.add(order)
    db.session.flush()
    number = order.id
    socketio.emit("ordered", {"id": number}, to=f"customer:{name}", session=db.session)
    db.session.commit()
    return {"id": number}, 201


def pay_order(number):
    order = db.session.get(Order, number, with_for_update=True)
    if order is None or order.paid:
        return "there is nothing to pay", 409
    order.paid = True
    customer = db.session.get(Customer, order.customer, with_for_update=True)
    customer.credit -= order.price
    try:
        socketio.emit("paid", {"id": number}, to=f"customer:{customer.name}", session=db.session)
        db.session.commit()
    except IntegrityError:  # not enough credit: nothing is paid, and no event is sent
        db.session.rollback()
        return "not enough credit", 402
    return "", 204


@socketio.on("connect")
def connect(auth):
    """Add the customer to a room. A real shop would check a token or a session here."""
    if not isinstance(auth, dict) or not isinstance(auth.get("customer"), str):
        raise ConnectionRefusedError("a customer is required")
    join_room(f"customer:{auth['customer']}")
    if not recovered():
        unpaid = db.session.query(Order).filter_by(customer=auth["customer"], paid=False)
        emit("orders", [order.id for order in unpaid])
