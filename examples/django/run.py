"""The shop on a temporary PostgreSQL: `python run.py` needs no installed one."""

import os

import uvicorn

from sio_pg_adapter.embedded import EmbeddedPostgres

if __name__ == "__main__":
    with EmbeddedPostgres() as pg:
        os.environ |= {"PGHOST": pg.host, "PGPORT": str(pg.port), "PGUSER": "app", "PGDATABASE": "app"}
        os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate")
        uvicorn.run("shop.asgi:application", port=8001, timeout_graceful_shutdown=5)
