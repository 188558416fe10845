"""Blocking methods, made from the asynchronous ones: the same parameters, types and docstrings."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from .background import Background, Caller

P = ParamSpec("P")
R = TypeVar("R")


class Blocking(Protocol):
    """What has blocking methods."""

    def _ready(self) -> tuple[Background, Any]:
        """Return the event loop of this process, and the object in it whose methods are called."""


@overload
def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Any, P], R]: ...


@overload
def blocking(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]: ...


def blocking(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that runs an asynchronous server's or manager's method in its event loop, and waits for it.

    A connection that is given as ``connection=`` is used in the calling thread. A function that is given as
    ``callback=`` is called in a thread.
    """
    name = method.__name__
    parameters = list(inspect.signature(method).parameters.values())[1:]
    by_name = math.inf if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters) else None
    places: dict[str, float] = {parameter.name: i for i, parameter in enumerate(parameters)}
    connection, callback = places.get("connection", by_name), places.get("callback", by_name)

    @functools.wraps(method)
    def call(self: Blocking, /, *args: Any, **kwargs: Any) -> Any:
        background, target = self._ready()
        caller = Caller(background.loop)
        if connection is not None:
            args = _replaced(args, kwargs, "connection", connection, caller.lend)
        if callback is not None:
            args = _replaced(args, kwargs, "callback", callback, functools.partial(_in_thread, background))
        return background.begin(caller, getattr(target, name), *args, **kwargs).wait()

    return call


def _replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], name: str, place: float, replace: Callable[[Any], Any]
) -> tuple[Any, ...]:
    """Replace an argument that is not ``None``."""
    if kwargs.get(name) is not None:
        kwargs[name] = replace(kwargs[name])
    elif len(args) > place and args[int(place)] is not None:
        return (*args[: int(place)], replace(args[int(place)]), *args[int(place) + 1 :])
    return args


def _in_thread(background: Background, function: Any) -> Any:
    """Return an async function that calls one in a thread. What cannot be called is returned, and refused later."""
    if not callable(function):
        return function

    @functools.wraps(function)
    async def called(*args: Any) -> Any:
        return await background.handlers.run(function, *args)

    return called
