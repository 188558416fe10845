"""``python -m sio_pg_adapter``, the same as ``sio-pg``."""

from __future__ import annotations

import sys

from sio_pg_adapter.cli import main

sys.exit(main())
