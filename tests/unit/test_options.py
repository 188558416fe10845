"""Options are checked where they are given, and the message names the key."""

from __future__ import annotations

import functools
import inspect
import logging
import math
import sqlite3

import pytest
import socketio

from sio_pg_adapter import (
    AsyncPostgresManager,
    AsyncServer,
    ConfigurationError,
    ConnectionStateRecovery,
    SioPgError,
    StoreUnavailable,
    close_room,
    close_room_async,
    disconnect,
    disconnect_async,
    emit,
    emit_async,
    enter_room,
    enter_room_async,
    leave_room,
    leave_room_async,
)
from sio_pg_adapter.options import recovery_options, retention_seconds

DSN = "postgresql://db"


async def asynchronous(*_: object) -> bool:
    return False


class Asynchronous:
    async def __call__(self, *_: object) -> bool:
        return False


def test_the_defaults():
    options = ConnectionStateRecovery()
    assert options.max_disconnection_duration == 120.0
    assert options.skip_middlewares is False
    assert options.max_missed_packets == 10_000
    assert options.accepts is None
    assert options.identity is None


@pytest.mark.parametrize("off", [None, False])
def test_off(off):
    assert recovery_options(off) is None


@pytest.mark.parametrize("on", [True, {}, ConnectionStateRecovery()])
def test_on_with_the_defaults(on):
    assert recovery_options(on) == ConnectionStateRecovery()


def test_a_dict_of_the_same_keys():
    options = recovery_options({"max_disconnection_duration": 5, "skip_middlewares": True})
    assert options == ConnectionStateRecovery(max_disconnection_duration=5, skip_middlewares=True)


@pytest.mark.parametrize(("seconds", "window"), [(1, 1.0), (0.5, 0.5), (math.inf, None)])
def test_the_window_as_the_database_takes_it(seconds, window):
    assert ConnectionStateRecovery(max_disconnection_duration=seconds).window == window


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("max_disconnection_duration", v) for v in (0, -1, math.nan, "120", None, True)),
        *(("max_missed_packets", v) for v in (-1, 1.5, "10", None, True, 2**31 - 1, 2**63)),
        *(("skip_middlewares", v) for v in (None, 0, "yes")),
        *(("accepts", v) for v in (True, "all", 0)),
        *(("accepts", v) for v in (asynchronous, Asynchronous(), functools.partial(asynchronous, 1))),
        *(("identity", v) for v in (True, "alice", asynchronous, Asynchronous())),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(key, value):
    with pytest.raises(ConfigurationError, match=key):
        recovery_options({key: value})


def test_an_unknown_key_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigurationError, match=r"no key 'max_duration'\. It takes max_disconnection_duration,"):
        recovery_options({"max_duration": 5})


@pytest.mark.parametrize("value", [1, "on", [], object()])
def test_another_type_is_refused(value):
    with pytest.raises(ConfigurationError, match="connection_state_recovery takes"):
        recovery_options(value)


def test_recovery_needs_our_manager():
    with pytest.raises(ConfigurationError, match="AsyncPostgresManager"):
        AsyncServer(connection_state_recovery=True)
    with pytest.raises(ConfigurationError, match="AsyncPostgresManager"):
        AsyncServer(client_manager=socketio.AsyncManager(), connection_state_recovery=True)


@pytest.mark.parametrize("dsn", ["mysql://secret", "host=secret", 7, 0, False, b"postgresql://secret", b""])
def test_a_dsn_that_is_none_is_refused_without_being_shown(dsn):
    with pytest.raises(ConfigurationError, match=r"^dsn takes(?!.*secret)"):
        AsyncPostgresManager(dsn)
    with pytest.raises(ConfigurationError, match=r"^listen_dsn takes(?!.*secret)"):
        AsyncPostgresManager(DSN, listen_dsn=dsn)


def test_an_empty_dsn_is_the_environments(monkeypatch):
    monkeypatch.delenv("SIO_PG_DSN", raising=False)
    AsyncPostgresManager("")
    with pytest.raises(ConfigurationError, match=r"^listen_dsn takes"):
        AsyncPostgresManager(DSN, listen_dsn="")


@pytest.mark.parametrize("value", ["mysql://secret", ""])
@pytest.mark.parametrize("dsn", [None, ""])
def test_a_wrong_dsn_of_the_environment_is_named_by_its_variable(dsn, value, monkeypatch):
    monkeypatch.setenv("SIO_PG_DSN", value)
    with pytest.raises(ConfigurationError, match=r"^SIO_PG_DSN takes(?!.*secret)"):
        AsyncPostgresManager(dsn)
    AsyncPostgresManager(DSN)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("write_only", v) for v in ("no", None, 1)),
        *(("logger", v) for v in ("x", True, False)),
        *(("json", v) for v in ("x", True, functools)),
        *(("max_queued_packets", v) for v in (0, True, "1")),
        *(("retention", v) for v in (0, -1, math.nan, "60", True)),
    ],
)
def test_a_wrong_option_of_the_manager_is_refused_by_its_name(option, value):
    with pytest.raises(ConfigurationError, match=f"^{option} takes"):
        AsyncPostgresManager(DSN, **{option: value})


@pytest.mark.parametrize(("retention", "seconds"), [(None, 0.0), (1, 1.0), (math.inf, None)])
def test_the_retention_as_the_database_takes_it(retention, seconds):
    assert retention_seconds(retention) == seconds


def test_a_retention_over_a_century_is_refused():
    with pytest.raises(ConfigurationError, match=r"retention is over a century\. Use math\.inf"):
        AsyncPostgresManager(DSN, retention=1e10)


def test_a_manager_that_only_emits_takes_no_retention():
    with pytest.raises(ConfigurationError, match=r"retention counts while a server runs.*write_only=True"):
        AsyncPostgresManager(DSN, write_only=True, retention=60.0)


def test_what_logs_is_a_logger():
    plain = logging.getLogger("test")
    for logger in (plain, logging.LoggerAdapter(plain)):
        assert AsyncPostgresManager(DSN, logger=logger).logger is logger


@pytest.mark.parametrize("manager", ["postgresql://secret@db", 7, True, object(), None, socketio.AsyncManager()])
def test_a_client_manager_that_is_none_is_refused_without_being_shown(manager):
    with pytest.raises(ConfigurationError, match=r"^client_manager takes AsyncPostgresManager(?!.*secret)"):
        AsyncServer(async_mode="asgi", client_manager=manager)


@pytest.mark.parametrize("schema", ["", "x" * 64, "ü" * 32, "a\0b", "\ud800", None, 7])
def test_a_schema_that_is_no_name_is_refused(schema):
    with pytest.raises(ConfigurationError, match="schema takes a name"):
        AsyncPostgresManager("postgresql://db", schema=schema)


CALLS = [
    functools.partial(emit, event="e"),
    functools.partial(enter_room, sid="s", room="r"),
    functools.partial(leave_room, sid="s", room="r"),
    functools.partial(close_room, room="r"),
    functools.partial(disconnect, sid="s"),
]
ASYNC_CALLS = [
    functools.partial(emit_async, event="e"),
    functools.partial(enter_room_async, sid="s", room="r"),
    functools.partial(leave_room_async, sid="s", room="r"),
    functools.partial(close_room_async, room="r"),
    functools.partial(disconnect_async, sid="s"),
]


@pytest.mark.parametrize("schema", [[], {}, 7, None, "", b"public"])
async def test_every_call_refuses_a_schema_that_is_no_name(schema):
    connection = sqlite3.connect(":memory:")
    for call in CALLS:
        with pytest.raises(ConfigurationError, match="schema takes a name"):
            call(connection, schema=schema)
    for call in ASYNC_CALLS:
        with pytest.raises(ConfigurationError, match="schema takes a name"):
            await call(connection, schema=schema)
    connection.close()


async def test_an_emit_refuses_a_json_that_is_no_module():
    for json in (None, 7, "json"):
        with pytest.raises(ConfigurationError, match="json takes a module with dumps"):
            emit(object(), "e", json=json)
        with pytest.raises(ConfigurationError, match="json takes a module with dumps"):
            await emit_async(object(), "e", json=json)


@pytest.mark.parametrize("value", [[], {}, set(), object(), b"x", lambda: 0, float("nan"), [1], -1])
@pytest.mark.parametrize(
    ("options", "name"),
    [
        (options, name)
        for options in (AsyncPostgresManager, ConnectionStateRecovery)
        for name in inspect.signature(options).parameters
    ],
)
def test_an_option_of_another_type_is_refused_by_name(options, name, value):
    if callable(value) and name in ("accepts", "error_handler", "identity"):
        assert options(**{name: value}) is not None
        return
    with pytest.raises(ConfigurationError, match=name):
        options(**{name: value})


def test_a_pool_that_is_none_is_refused():
    with pytest.raises(ConfigurationError, match="pool takes"):
        AsyncPostgresManager(pool="postgresql://db")


def test_a_write_only_manager_serves_no_server():
    with pytest.raises(ConfigurationError, match="write_only"):
        AsyncServer(client_manager=AsyncPostgresManager("postgresql://db", write_only=True))


@pytest.mark.parametrize("middleware", [lambda *_: None, 7])
def test_a_middleware_is_an_async_function(middleware):
    sio = AsyncServer(client_manager=AsyncPostgresManager("postgresql://db"))
    with pytest.raises(ConfigurationError, match="async function"):
        sio.use(middleware)


@pytest.mark.parametrize("namespace", [5, 0, False, b"", [], "a\0"])
def test_what_is_registered_is_registered_for_a_namespace(namespace):
    sio = AsyncServer(client_manager=AsyncPostgresManager(DSN), connection_state_recovery=True)
    for register in (
        lambda: sio.use(namespace=namespace),
        lambda: sio.use(asynchronous, namespace),
        lambda: sio.on_session_expired(namespace=namespace),
        lambda: sio.on_session_expired(asynchronous, namespace=namespace),
    ):
        with pytest.raises(ConfigurationError, match="namespace"):
            register()


@pytest.mark.parametrize("event", [5, "", None, b"x"])
def test_a_server_event_has_a_name(event):
    sio = AsyncServer(client_manager=AsyncPostgresManager(DSN))
    with pytest.raises(ConfigurationError, match="on_server_event takes"):
        sio.on_server_event(event)


def test_one_tree_of_errors_says_what_is_stored():
    assert issubclass(ConfigurationError, SioPgError) and issubclass(ConfigurationError, ValueError)
    assert "nothing was stored" in str(StoreUnavailable("x"))
    unsure = StoreUnavailable("x", may_be_stored=True)
    assert unsure.may_be_stored and "may be stored" in str(unsure)


@pytest.mark.parametrize("name", ["connection_state_recovry", "connectionStateRecovery", "state_recovery"])
def test_a_misspelt_option_does_not_leave_recovery_off_in_silence(name):
    with pytest.raises(ConfigurationError, match=f"{name}.*Did you mean connection_state_recovery"):
        AsyncServer(client_manager=AsyncPostgresManager(), **{name: True})


MISSPELT = [("cors_allowed_origin", "cors_allowed_origins"), ("pingInterval", "ping_interval")]


@pytest.mark.parametrize(("name", "meant"), MISSPELT)
def test_a_misspelt_option_of_upstream_is_not_ignored(name, meant):
    with pytest.raises(ConfigurationError, match=f"no option '{name}'. Did you mean {meant}"):
        AsyncServer(client_manager=AsyncPostgresManager(), **{name: 1})


def test_upstreams_options_pass():
    options = {
        "ping_interval": 7,
        "cors_allowed_origins": [],
        "always_connect": True,
        "http_compression": False,
        "engineio_logger": False,
    }
    sio = AsyncServer(async_mode="asgi", client_manager=AsyncPostgresManager(), **options)
    assert sio.eio.ping_interval == 7 and sio.always_connect


# -- what a manager serves -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("option", ["url", "channel", "redis_options"])
def test_an_option_of_the_redis_manager_is_named_with_what_replaces_it(option):
    with pytest.raises(ConfigurationError, match=f"^AsyncPostgresManager has no option '{option}'. Pass|Servers"):
        AsyncPostgresManager(**{option: "redis://secret"})


def test_an_option_that_no_manager_has_is_a_type_error():
    with pytest.raises(TypeError, match="recovery"):
        AsyncPostgresManager("postgresql://db", recovery=True)


def test_a_manager_serves_one_server():
    manager = AsyncPostgresManager(DSN)
    AsyncServer(async_mode="asgi", client_manager=manager)
    with pytest.raises(ConfigurationError, match="serves one server"):
        AsyncServer(async_mode="asgi", client_manager=manager)


def test_a_synchronous_server_is_refused_by_its_name():
    with pytest.raises(ConfigurationError, match=r"not a socketio\.Server.*sio_pg_adapter\.emit"):
        socketio.Server(client_manager=AsyncPostgresManager(DSN), async_mode="threading")


def test_the_server_without_recovery_refuses_the_option_that_it_would_ignore():
    with pytest.raises(ConfigurationError, match=r"sio_pg_adapter\.AsyncServer"):
        socketio.AsyncServer(
            async_mode="asgi", client_manager=AsyncPostgresManager(DSN), connection_state_recovery=True
        )
    socketio.AsyncServer(async_mode="asgi", client_manager=AsyncPostgresManager(DSN), ping_interval=5)


def test_durability_is_one_of_two():
    for name in ("flush", "memory"):
        assert AsyncPostgresManager(DSN, durability=name).database.durability == name
    for wrong in ("disk", None, True, 1):
        with pytest.raises(ConfigurationError, match="durability"):
            AsyncPostgresManager(DSN, durability=wrong)
