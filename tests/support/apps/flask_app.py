"""`python -m support.apps.flask_app PORT`: Flask-SocketIO, Flask-SQLAlchemy and Flask-Migrate in one file."""

from __future__ import annotations

import os
import sys

from flask import Flask, jsonify, request, session
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sio_pg_adapter import schema
from sio_pg_adapter.flask import Namespace, SocketIO, emit, join_room, recovered, send


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
socketio = SocketIO(connection_state_recovery=True)


class Order(db.Model):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


def create_app(dsn: str | None = None) -> Flask:
    app = Flask(__name__)
    app.config["SECRET_KEY"] = "of a test"
    dsn = dsn or os.environ["SIO_PG_DSN"]
    app.config["SQLALCHEMY_DATABASE_URI"] = dsn.replace("postgresql://", "postgresql+psycopg://")
    db.init_app(app)
    Migrate(app, db, directory=os.environ.get("MIGRATIONS", "migrations"), include_object=schema.include_object)
    socketio.init_app(app)

    @app.get("/health")
    def health():
        socketio.server.start()  # nothing else does, before the first client
        return jsonify(ok=socketio.server.manager.health().ok)

    @app.post("/order")
    def order():
        db.session.add(Order())
        socketio.emit("ordered", {"by": "HTTP"}, to="all", session=db.session)
        if request.args.get("fails"):
            db.session.rollback()
        else:
            db.session.commit()
        return jsonify(None)

    return app


@socketio.on("connect")
def connect(auth):
    session["auth"] = auth
    join_room("all")
    emit("hello", {"recovered": recovered(), "environ": request.environ["sio_pg.recovered"], "auth": auth})


@socketio.event
def order(fails):
    db.session.add(Order())
    emit("ordered", {"by": session["auth"]}, to="all", session=db.session)
    join_room("customers", session=db.session)
    if fails:
        db.session.rollback()
    else:
        db.session.commit()
    return [request.sid, request.namespace]


@socketio.event
def say(text):
    send(text, broadcast=True)
    emit("typing", text, broadcast=True, volatile=True)
    emit("said", text, to="all", key=text)


@socketio.event
def fail():
    raise RuntimeError("of the application")


@socketio.on_error()
def failed(error):
    return str(error)


class Chat(Namespace):
    def on_connect(self):
        join_room("chat")

    def on_say(self, text):
        self.emit("said", text, room="chat")
        return text


socketio.on_namespace(Chat("/chat"))

if __name__ == "__main__":
    socketio.run(create_app(), port=int(sys.argv[1]), allow_unsafe_werkzeug=True)
