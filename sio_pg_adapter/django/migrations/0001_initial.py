"""The tables of schema version 1."""

from __future__ import annotations

from typing import ClassVar

from django.db import migrations

from sio_pg_adapter.django.operations import UpgradeTables


class Migration(migrations.Migration):
    """Creates the tables, as ``sio-pg migrate`` does."""

    initial = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar[list[UpgradeTables]] = [UpgradeTables("sio0001")]
