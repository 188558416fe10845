"""The types of python-socketio's decorators, which is published without types. A decorated handler keeps its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, overload

Handler = TypeVar("Handler", bound=Callable[..., Any])


class Event(Protocol):
    """The decorator ``@sio.event``, also as ``@sio.event(namespace="/chat")``."""

    @overload
    def __call__(self, handler: Handler, /) -> Handler: ...

    @overload
    def __call__(self, *, namespace: str | None = None) -> Callable[[Handler], Handler]: ...


class On(Protocol):
    """The decorator ``@sio.on("event")``, also called as ``sio.on("event", handler)``."""

    @overload
    def __call__(
        self, event: str, handler: None = None, namespace: str | None = None
    ) -> Callable[[Handler], Handler]: ...

    @overload
    def __call__(self, event: str, handler: Callable[..., Any], namespace: str | None = None) -> None: ...
