"""The tables in an application's own alembic environment.

There are three ways to create the tables, and ``docs/alembic.md`` shows each. ``sio-pg migrate`` needs no alembic of
the application's. The other two are here:

- as a branch: ``sio_pg_adapter:migrations/versions`` in the ``version_locations`` of ``alembic.ini``;
- from a revision of the application's own, by :func:`upgrade` and :func:`downgrade`.

``alembic revision --autogenerate`` and ``alembic check`` must leave the tables alone. For that, env.py either passes
:func:`include_object` to ``context.configure()``, which works in all three ways, or has :data:`metadata` among its
``target_metadata``.
"""

from __future__ import annotations

from .revisions import downgrade, upgrade
from .tables import include_object, metadata, metadata_in

__all__ = ["downgrade", "include_object", "metadata", "metadata_in", "upgrade"]
