"""The shop on a temporary PostgreSQL: `python run.py` needs no installed one."""

from __future__ import annotations

import os
from pathlib import Path

import uvicorn
from alembic import command
from alembic.config import Config

from sio_pg_adapter.embedded import EmbeddedPostgres

if __name__ == "__main__":
    with EmbeddedPostgres() as pg:
        os.environ["DATABASE_URL"] = pg.dsn(scheme="postgresql+asyncpg")
        command.upgrade(Config(Path(__file__).with_name("alembic.ini")), "heads")
        uvicorn.run("app:asgi", timeout_graceful_shutdown=5)
