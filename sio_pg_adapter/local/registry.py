"""``Registry``: functions of the application that see the events or the clients of a namespace."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

ALL = "*"
"""The name that stands for all namespaces, as in python-socketio."""


class Registry:
    """Functions of the application by namespace, in the order of their registration.

    :param apart: namespaces that ``"*"`` does not include: the Admin UI's.
    """

    def __init__(self, apart: Container[str]) -> None:
        self._apart = apart
        self._functions: list[tuple[str, Callable[..., Any]]] = []

    def add(self, namespace: str, function: Callable[..., Any]) -> None:
        """Register a function for a namespace, or for all."""
        self._functions.append((namespace, function))

    def of(self, namespace: str) -> list[tuple[Callable[..., Any], tuple[str, ...]]]:
        """Return the functions of a namespace, each with the arguments that it takes before the sid.

        A function of all namespaces takes the namespace there, as python-socketio's handlers do.
        """
        return [
            (function, (namespace,) if where == ALL else ())
            for where, function in self._functions
            if where == namespace or (where == ALL and namespace not in self._apart)
        ]
