"""Addresses: which parameters asyncpg gets, and in what order hosts are tried."""

from __future__ import annotations

import asyncio
import re
import socket

import pytest

from sio_pg_adapter import ConfigurationError
from sio_pg_adapter.addresses import read_address

UNKNOWN = [
    "channel_binding=require",
    "keepalives=1",
    "keepalives_idle=30",
    "gssencmode=disable",
    "load_balance_hosts=random",
    "require_auth=scram-sha-256",
    "pgbouncer=true",
    "connect_timeout=10",
    "sslrootcert=system",
]


@pytest.mark.parametrize("parameter", UNKNOWN)
def test_parameters_that_asyncpg_does_not_know_are_left_out(parameter):
    address = read_address(f"postgresql://u:p%2F@h/db?{parameter}&application_name=a%20b", "dsn")
    assert address.dsn == "postgresql://u:p%2F@h/db?application_name=a%20b"
    assert address.hosts == []


def test_parameters_that_mean_something_are_kept():
    assert read_address("postgresql://h/db?connect_timeout=7", "dsn").timeout == 7
    assert read_address("postgresql://h/db?connect_timeout=0", "dsn").timeout is None
    assert "ssl" in read_address("postgresql://h/db?sslrootcert=system&sslmode=verify-full", "dsn").options
    assert read_address("postgresql://h/db?sslmode=require", "dsn").dsn == "postgresql://h/db?sslmode=require"


def test_a_protection_that_is_left_out_is_logged_without_the_url(caplog):
    read_address("postgresql://u:secret@h/db?channel_binding=require", "dsn")
    assert "channel_binding" in caplog.text and "secret" not in caplog.text


@pytest.mark.parametrize("parameter", ["hostaddr=10.0.0.1", "replication=database", "connect_timeout=soon"])
def test_what_cannot_be_kept_is_refused_by_name(parameter):
    with pytest.raises(ConfigurationError, match=f"SIO_PG_DSN is wrong.*{parameter.partition('=')[0]}"):
        read_address(f"postgresql://u:secret@h/db?{parameter}", "SIO_PG_DSN")


@pytest.mark.parametrize(
    ("dsn", "hosts"),
    [
        ("postgresql://u@a:1,b:2/db", [("a", 1), ("b", 2)]),
        ("postgresql://u@a,b/db", [("a", 5432), ("b", 5432)]),
        ("postgresql://u@[::1]:1,[::2]:2/db", [("::1", 1), ("::2", 2)]),
        ("postgresql://u@/db?host=a,%2Fsocket&port=1,2", [("a", 1), ("/socket", 2)]),
        ("postgresql://u@/db?host=a,b&port=7", [("a", 7), ("b", 7)]),
        ("postgresql://u@a:x,b/db", []),
    ],
)
def test_several_hosts(dsn, hosts, monkeypatch):
    monkeypatch.delenv("PGPORT", raising=False)
    assert read_address(dsn, "dsn").hosts == hosts


async def test_each_host_has_a_time_of_its_own_and_the_last_good_one_is_first(monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.addresses.HOST_TIMEOUT", 0.05)
    address = read_address("postgresql://dead,good,third/db", "dsn")
    tried = []

    async def connect(dsn, *, host, port, target_session_attrs):
        tried.append(host)
        if host == "dead":
            await asyncio.Event().wait()
        return host

    assert await address.connect(connect, 60) == "good"
    assert await address.connect(connect, 60) == "good"
    assert tried == ["dead", "good", "good"]


@pytest.mark.parametrize(
    "dsn", ["postgresql://u:p@nohost/db", "postgresql://u@/db?host=nohost", "postgresql://nohost,nohost/"]
)
async def test_a_host_that_cannot_be_looked_up_is_named(dsn):
    async def connect(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(socket.gaierror, match=re.escape("host nohost: Name or service not known")):
        await read_address(dsn, "dsn").connect(connect, 1.0)


def test_a_second_at_sign_is_explained_without_the_password():
    with pytest.raises(ConfigurationError, match=r"SIO_PG_DSN is wrong: it has more than one @.*%40") as refused:
        read_address("postgresql://u:sec@ret@h/db", "SIO_PG_DSN")
    assert "sec" not in str(refused.value)
