"""`gunicorn -k gthread support.apps.django_wsgi_app:app`: Django's Server, whose handlers use the database."""

from __future__ import annotations

import threading

import django
import socketio
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from sio_pg_adapter import emit, enter_room
from support.django_project import configure

configure()
django.setup()

from django.conf import settings
from django.db import connection, transaction

from sio_pg_adapter.django import Server

settings.ROOT_URLCONF = __name__
sio = Server(connection_state_recovery=True)
together = threading.Barrier(2)


@sio.event
def connect(sid, environ, auth):
    with transaction.atomic():
        enter_room(connection, sid, "all")  # in effect at the commit


@sio.event
def pay(sid, fails):
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders VALUES (1)")
        sio.emit("paid", {"failed": fails}, room="all", connection=connection)
        if fails:
            raise RuntimeError("after the emit")
    return sio.recovered(sid)


@sio.event
def meet(sid):
    """Wait in the database until two threads are here."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        together.wait(30)
        return True


@sio.event
def others(sid):
    """The connections of Django's of this process besides the one that asks."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT array(SELECT pid FROM pg_stat_activity"
            " WHERE application_name = 'of django' AND pid <> pg_backend_pid())"
        )
        return cursor.fetchone()[0]


def health(_: HttpRequest) -> JsonResponse:
    return JsonResponse({"ok": sio.manager.health().ok})


def order(_: HttpRequest) -> JsonResponse:
    with transaction.atomic():
        emit(connection, "ordered", {"id": 7}, room="all")
    return JsonResponse(None, safe=False)


urlpatterns = [path("health", health), path("order", order)]
app = socketio.WSGIApp(sio, get_wsgi_application())
sio.start()
