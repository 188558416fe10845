"""The Admin UI on the synchronous server."""

from __future__ import annotations

from typing import Any


class Instrumented:
    """The reports of :class:`sio_pg_adapter.Server` to the Admin UI, as its ``instrument`` returns them.

    The attributes are those of the instrumented server in the event loop.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        self._instrumented: Any = None

    def adopt(self, instrumented: Any) -> None:
        """Stand for the instrumented server of this process. A forked process has its own."""
        self._instrumented = instrumented

    def shutdown(self) -> None:
        """Stop reporting. Safe to call twice, and after the end of the server, which does it, too."""
        background = self._server.manager._background  # noqa: SLF001 - they are one
        if background is not None:
            background.call(self._instrumented.shutdown)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._instrumented, name)
