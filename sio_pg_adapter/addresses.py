"""Addresses of databases: URLs as users have them, in the form that asyncpg takes, host by host."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from .errors import ConfigurationError

ENCODED = "In a user or password write %40 for @, %2F for /, %3F for ? and %23 for #."

HOST_TIMEOUT = 4.0
"""How long one of several hosts may take to answer, in seconds. A host that is gone may never refuse."""

DROPPED = frozenset(
    [
        "client_encoding",
        "connection_limit",
        "fallback_application_name",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "max_protocol_version",
        "min_protocol_version",
        "pgbouncer",
        "pool_timeout",
        "prepared_statements",
        "sslcompression",
        "sslsni",
        "tcp_user_timeout",
    ]
)
"""Parameters that change nothing here. This package has settings of its own for them, or asyncpg needs none."""

WEAKENED = {"channel_binding": ["require"], "gssencmode": ["require"], "require_auth": []}
"""Parameters that protect a connection and that asyncpg does not know, with the values that do. Empty: all."""

REFUSED = frozenset(["gssdelegation", "hostaddr", "replication", "requirepeer", "sslcertmode", "sslkeylogfile"])
"""Parameters that asyncpg does not know, and without which the connection would be another one."""

T = TypeVar("T")

logger = logging.getLogger("sio_pg_adapter")


@dataclass(slots=True)
class Address:
    """Where a database is.

    :ivar dsn: a URL that asyncpg takes. ``None``: libpq's ``PG*`` variables say it.
    :ivar hosts: the hosts and ports, if there are several. The one that answered last is the first.
    :ivar timeout: the seconds that a host may take, if the URL says so.
    :ivar options: more arguments for asyncpg's ``connect``.
    :ivar host: the host, if there is one, for error messages.
    """

    dsn: str | None
    hosts: list[tuple[str, int]] = field(default_factory=list)
    timeout: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    host: str = ""

    async def connect(self, connect: Callable[..., Awaitable[T]], timeout: float, **options: Any) -> T:
        """Connect to the first host that answers, each within a time of its own.

        :param connect: asyncpg's ``connect``.
        :param timeout: how long a single host may take, in seconds.
        """
        if not self.hosts:
            with _naming(self.host):
                return await connect(self.dsn, timeout=self.timeout or timeout, **self.options, **options)
        error: Exception | None = None
        for host, port in list(self.hosts):
            try:
                with _naming(host):
                    async with asyncio.timeout(self.timeout or HOST_TIMEOUT):
                        connection = await connect(self.dsn, host=host, port=port, **self.options, **options)
            except Exception as e:  # noqa: BLE001 - another host may serve
                error = e
            else:
                self.hosts.sort(key=lambda at: at != (host, port))
                return connection
        assert error is not None
        raise error


@contextmanager
def _naming(host: str) -> Iterator[None]:
    """Name the host in the error of a look-up, which does not."""
    try:
        yield
    except socket.gaierror as e:
        raise socket.gaierror(e.errno, f"host {host}: {e.strerror}") from e


def read_address(dsn: str | None, option: str) -> Address:
    """Read a URL.

    :param option: where it was given, for the error message, which shows nothing of the URL.
    :raises ConfigurationError: naming a parameter that cannot be kept.
    """
    if dsn is None:
        host = os.environ.get("PGHOST", "")
        return Address(None, _hosts(host, os.environ.get("PGPORT", "")), host=host)
    try:
        parsed = urlsplit(dsn)
    except ValueError:
        return Address(dsn)  # the connect says that it cannot be read
    if parsed.netloc.count("@") > 1:  # asyncpg takes what is behind the first one for the host
        raise ConfigurationError(f"{option} is wrong: it has more than one @. {ENCODED}")
    address, kept, query = Address(dsn), [], dict[str, str]()
    for pair in filter(None, parsed.query.split("&")):
        name, _, value = pair.partition("=")
        query[name] = unquote(value)
        if _is_kept(name, query[name], option):
            kept.append(pair)
    if "connect_timeout" in query:
        address.timeout = _seconds(query["connect_timeout"], option)
    if query.get("sslrootcert") == "system":
        address.options["ssl"] = ssl.create_default_context()  # as libpq, which verifies in full then
    address.dsn = urlunsplit(parsed._replace(query="&".join(kept)))
    hosts = unquote(parsed.netloc.rpartition("@")[2]) or query.get("host", "")
    address.host = parsed.hostname or query.get("host") or os.environ.get("PGHOST", "")
    address.hosts = _hosts(hosts, query.get("port") or os.environ.get("PGPORT", ""))
    if address.hosts and "target_session_attrs" not in query and "PGTARGETSESSIONATTRS" not in os.environ:
        address.options["target_session_attrs"] = "primary"
    return address


def _is_kept(name: str, value: str, option: str) -> bool:
    """Whether a parameter is for asyncpg, or for the server."""
    if name in REFUSED:
        raise ConfigurationError(f"{option} is wrong: asyncpg does not know {name}. Remove it.")
    if name in WEAKENED:
        if not WEAKENED[name] or value in WEAKENED[name]:
            logger.warning("asyncpg does not know %s, which is left out. Use sslmode=verify-full.", name)
        return False
    return name not in DROPPED and name != "connect_timeout" and (name, value) != ("sslrootcert", "system")


def _hosts(hosts: str, ports: str) -> list[tuple[str, int]]:
    """Return the hosts and ports if there are several. Empty if there is one, or if they cannot be read."""
    names = hosts.split(",")
    if len(names) < 2:
        return []
    numbers = ports.split(",") if ports else ["5432"]
    if len(numbers) == 1:
        numbers *= len(names)
    several = []
    try:
        for name, number in zip(names, numbers, strict=True):
            plain, _, own = name.rpartition(":") if ":" in name and not name.endswith("]") else (name, "", "")
            several.append((plain.strip("[]"), int(own or number)))
    except ValueError:
        return []  # asyncpg says what is wrong with them
    return several


def _seconds(value: str, option: str) -> float | None:
    try:
        return float(value) or None  # 0 is no limit, as in libpq
    except ValueError:
        raise ConfigurationError(f"{option} is wrong: connect_timeout takes seconds") from None


def plain_dsn(dsn: str | None, option: str) -> str | None:
    """Return a URL without a driver's name: SQLAlchemy writes ``postgresql+asyncpg://``.

    :param option: where it was given, for the error message, which shows nothing of the URL.
    """
    if dsn is None:
        return None
    if not isinstance(dsn, str):
        raise ConfigurationError(f"{option} takes a PostgreSQL URL, not a {type(dsn).__name__}")
    dsn = re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", dsn)
    if not re.match(r"^postgres(ql)?://", dsn):
        raise ConfigurationError(f"{option} takes a URL that begins with postgresql://")
    return dsn
