"""A package that has one more revision than this one: ``sio0002``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from alembic.config import Config

from sio_pg_adapter import migrate
from sio_pg_adapter.schema import revisions

REVISIONS = Path(__file__).with_name("revisions")


def has_a_later_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this package find the later revision, too."""
    config_for = migrate.config_for

    def with_later(schema: str) -> Config:
        config = config_for(schema)
        versions = Path(config.get_main_option("script_location") or "") / "versions"
        config.set_main_option("path_separator", "os")
        config.set_main_option("version_locations", f"{versions}{os.pathsep}{REVISIONS}".replace("%", "%%"))
        return config

    monkeypatch.setattr(migrate, "config_for", with_later)
    monkeypatch.setattr(revisions, "config_for", with_later)
