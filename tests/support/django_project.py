"""``python -m support.django_project COMMAND``: manage.py of a project whose settings are in the environment.

DJANGO_DSN is the database, and DJANGO_SETTINGS has more settings, as JSON.
"""

from __future__ import annotations

import json
import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from psycopg.conninfo import conninfo_to_dict


def configure() -> None:
    at = conninfo_to_dict(os.environ["DJANGO_DSN"])
    postgres = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": at["dbname"],
        "HOST": at["host"],
        "PORT": at["port"],
        "USER": at["user"],
        "PASSWORD": at.get("password", ""),
        "OPTIONS": {"application_name": "of django"},
    }
    sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    given = json.loads(os.environ.get("DJANGO_SETTINGS", "{}"))
    databases = {"default": postgres, "other": sqlite}
    if given.pop("swapped", False):
        databases = {"default": sqlite, "events": postgres}
    settings.configure(
        DATABASES=databases,
        INSTALLED_APPS=["sio_pg_adapter.django"],
        SECRET_KEY="of a test",
        USE_TZ=True,
        ALLOWED_HOSTS=["*"],
        **given,
    )


if __name__ == "__main__":
    configure()
    execute_from_command_line(["manage.py", *sys.argv[1:]])
