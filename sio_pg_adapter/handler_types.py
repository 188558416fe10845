"""The types of upstream's decorators, which has none: a handler keeps its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, overload

Handler = TypeVar("Handler", bound=Callable[..., Any])


class Event(Protocol):
    """``@sio.event``, and ``@sio.event(namespace="/chat")``."""

    @overload
    def __call__(self, handler: Handler, /) -> Handler: ...

    @overload
    def __call__(self, *, namespace: str | None = None) -> Callable[[Handler], Handler]: ...


class On(Protocol):
    """``@sio.on("event")``, and ``sio.on("event", handler)``."""

    @overload
    def __call__(
        self, event: str, handler: None = None, namespace: str | None = None
    ) -> Callable[[Handler], Handler]: ...

    @overload
    def __call__(self, event: str, handler: Callable[..., Any], namespace: str | None = None) -> None: ...
