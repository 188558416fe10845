"""What the web server serves: Socket.IO at /socket.io, and Django everywhere else."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")

import socketio
from django.core.asgi import get_asgi_application

from sio_pg_adapter import lifespan

application = get_asgi_application()  # first, because the next module uses models

from shop.sockets import sio

life = lifespan(sio)
application = socketio.ASGIApp(sio, application, on_startup=life.startup, on_shutdown=life.shutdown)
