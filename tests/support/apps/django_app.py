"""`uvicorn support.apps.django_app:app`: Django, which answers no lifespan events."""

from __future__ import annotations

import django
import socketio
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from sio_pg_adapter import lifespan

from .handlers import make_server

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="of a test", USE_TZ=True)
django.setup()

sio = make_server("asgi")


async def health(_: HttpRequest) -> JsonResponse:
    if not sio.manager.leaving:
        await sio.manager.start()  # daphne starts nothing before the first request
    return JsonResponse({"ok": (await sio.manager.health()).ok})


@csrf_exempt
async def shout(_: HttpRequest) -> JsonResponse:
    await sio.emit("shouted", "by HTTP", room="all")
    return JsonResponse(None, safe=False)


urlpatterns = [path("health", health), path("shout", shout)]
life = lifespan(sio)
app = socketio.ASGIApp(sio, get_asgi_application(), on_startup=life.startup, on_shutdown=life.shutdown)
