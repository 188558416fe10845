"""`uvicorn support.apps.django_orm_app:app`: Django's AsyncServer, whose handlers use the database."""

from __future__ import annotations

import threading

import django
import socketio
from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from sio_pg_adapter import AsyncNamespace, emit, enter_room, lifespan
from support.django_project import configure

configure()
django.setup()

from django.conf import settings
from django.db import connection, transaction

from sio_pg_adapter.django import AsyncServer

settings.ROOT_URLCONF = __name__
sio = AsyncServer(connection_state_recovery=True)


def connections():
    """The process ids of this process's connections of Django's, in the database, besides the one that asks."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_backend_pid(), array(SELECT pid FROM pg_stat_activity "
            "WHERE application_name = 'of django' AND pid <> pg_backend_pid())"
        )
        return cursor.fetchone()


@sio.use
async def middleware(sid, environ, auth):
    await sync_to_async(connections)()


@sio.event
def connect(sid, environ, auth):
    with transaction.atomic():
        connections()
        enter_room(connection, sid, "all")  # in effect at the commit


@sio.event
def pay(sid, fails):
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders VALUES (1)")
        emit(connection, "paid", {"failed": fails}, room="all")
        if fails:
            raise RuntimeError("after the emit")
    return threading.current_thread() is threading.main_thread()


@sio.event
async def ask_twice(sid):
    return [(await sync_to_async(connections)())[0] for _ in range(2)]


@sio.event
async def others(sid):
    return (await sync_to_async(connections)())[1]


@sio.event
async def threads(sid):
    return threading.active_count()


class Chat(AsyncNamespace):
    async def on_others(self, sid):
        return (await sync_to_async(connections)())[1]


sio.register_namespace(Chat("/chat"))


async def health(_: HttpRequest) -> JsonResponse:
    return JsonResponse({"ok": (await sio.manager.health()).ok})


def order(_: HttpRequest) -> JsonResponse:
    with transaction.atomic():
        emit(connection, "ordered", {"id": 7}, room="all")
    return JsonResponse(None, safe=False)


urlpatterns = [path("health", health), path("order", order)]
life = lifespan(sio)
app = socketio.ASGIApp(sio, get_asgi_application(), on_startup=life.startup, on_shutdown=life.shutdown)
