"""The refusal of processes whose threads gevent or eventlet has replaced."""

from __future__ import annotations

import socket
import sys
import threading

from .errors import ConfigurationError

REFUSED = {
    "eventlet": "its green threads share one system thread with the event loop, and the project is retired",
    "gevent": "its patched locks and sockets do not reach the system thread of the event loop",
}
"""Libraries that replace threads, and why an event loop in a background thread cannot work with them."""


def refuse_green_threads(instead: str) -> None:
    """Raise an error if a library has patched the threads or the sockets of this process.

    :param instead: what to use instead, for the error's text.
    :raises ConfigurationError: naming the library.
    """
    patched = type(threading.Lock()).__module__ != "_thread" or socket.socket.__module__ != "socket"
    for library, reason in REFUSED.items():
        if patched and library in sys.modules:
            raise ConfigurationError(
                f"{library} has patched the threads or the sockets of this process: {reason}. {instead}"
            )
