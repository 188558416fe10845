"""``Server`` and ``PostgresManager``: the blocking API, its threads and its processes."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import socketio
from werkzeug.serving import make_server

from sio_pg_adapter import (
    BlockingSocket,
    Client,
    ConfigurationError,
    Namespace,
    NoAnswer,
    PostgresManager,
    Server,
    StoreUnavailable,
)
from sio_pg_adapter.sync.background import Background
from support.sync_node import Quiet


class Served:
    """A server under werkzeug, and the events that its clients got."""

    def __init__(self, dsn: str) -> None:
        self.sio = Server(client_manager=PostgresManager(dsn), connection_state_recovery=True)
        self.sio.on("connect", lambda sid, _environ: self.sio.enter_room(sid, "r"))
        self.sio.on("echo", lambda _sid, value: value)
        self.web = make_server("127.0.0.1", 0, socketio.WSGIApp(self.sio), threaded=True, request_handler=Quiet)
        self.web.daemon_threads = True
        self.thread = threading.Thread(target=self.web.serve_forever)
        self.thread.start()
        self.clients: list[Client] = []

    def client(self, transport: str = "websocket") -> Client:
        client = Client(reconnection=False)
        self.clients.append(client)
        client.connect(f"http://127.0.0.1:{self.web.server_port}", transports=[transport])
        return client

    def close(self) -> None:
        for client in self.clients:
            client.disconnect()
        self.sio.shutdown()
        self.web.shutdown()
        self.thread.join()
        self.web.server_close()


@pytest.fixture
def served(pg_dsn: str) -> Iterator[Served]:
    served = Served(pg_dsn)
    yield served
    served.close()


def events(client: Client, name: str) -> list[Any]:
    got: list[Any] = []
    client.on(name, got.append)
    return got


@pytest.mark.parametrize("transport", ["websocket", "polling"])
def test_a_client_calls_and_is_called(served: Served, transport: str) -> None:
    client = served.client(transport)
    client.on("ask", lambda value: value + 1)
    assert client.transport() == transport
    assert client.call("echo", {"binary": b"\x00"}) == {"binary": b"\x00"}
    assert served.sio.call("ask", 6, to=client.get_sid()) == 7


def test_a_large_message_passes_in_both_directions(served: Served) -> None:
    text = "x" * 900_000
    assert served.client().call("echo", text) == text


def test_a_websocket_takes_no_thread_of_the_web_server(served: Served) -> None:
    before = threading.active_count()
    clients = [served.client() for _ in range(5)]
    for client in clients:
        client.call("echo", 1)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if "process_request_thread" in name], (before, names)


def test_a_handler_that_blocks_delays_nobody(served: Served) -> None:
    go, entered = threading.Event(), threading.Event()

    def block(sid: str) -> str:
        entered.set()
        go.wait()
        return "done"

    served.sio.on("block", block)
    blocked, other = served.client(), served.client()
    answered = threading.Event()
    blocked.emit("block", callback=lambda _value: answered.set())
    entered.wait()
    assert other.call("echo", 1) == 1
    assert blocked.call("echo", 2) == 2
    assert not answered.is_set()
    go.set()
    assert answered.wait(10)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), StopIteration(), KeyboardInterrupt()])
def test_a_handler_that_raises_ends_nothing(served: Served, error: BaseException, expected_errors: list[str]) -> None:
    expected_errors.append("Task exception was never retrieved")

    def fail(sid: str) -> None:
        raise error

    served.sio.on("fail", fail)
    client = served.client()
    client.emit("fail")
    assert client.call("echo", 1) == 1
    assert served.sio.manager.health().ok


def test_an_emit_on_a_connection_is_part_of_its_transaction(served: Served, pg_dsn: str) -> None:
    client = served.client()
    got = events(client, "said")
    with psycopg.connect(pg_dsn) as connection:
        here = []
        connection.add_notice_handler(lambda _notice: here.append(threading.current_thread()))
        connection.execute("SET client_min_messages = debug1")
        assert served.sio.emit("said", "rolled back", room="r", connection=connection) is None
        connection.rollback()
        assert served.sio.emit("said", "committed", room="r", connection=connection, key="k") is True
        served.sio.leave_room(client.get_sid(), "r", connection=connection)
        served.sio.emit("said", "after", room="r", connection=connection)
        connection.commit()
        assert served.sio.emit("said", "again", room="r", connection=connection, key="k") is False
    served.sio.emit("said", "end")
    while "end" not in got:
        time.sleep(0.01)
    assert got == ["committed", "end"]
    assert served.sio.rooms(client.get_sid()) == [client.get_sid()]


def test_the_sockets_of_fetch_sockets_block(served: Served, pg_dsn: str) -> None:
    client, other = served.client(), served.client("polling")
    got, others = events(client, "said"), events(other, "said")
    [socket] = served.sio.fetch_sockets(client.get_sid())
    assert isinstance(socket, BlockingSocket)
    assert (socket.sid, socket.rooms, socket.session) == (client.get_sid(), (client.get_sid(), "r"), {})
    assert socket.handshake.query["transport"] == "websocket"
    assert len(served.sio.fetch_sockets("r", local=True)) == 2
    assert socket.join(["a", "b"]) is None
    assert socket.leave("r") is None
    assert served.sio.rooms(socket.sid) == [socket.sid, "a", "b"]
    with psycopg.connect(pg_dsn) as connection:
        connection.execute("CREATE TEMPORARY TABLE t (i int)")
        assert socket.emit("said", "in a transaction", key="k", connection=connection) is True
        assert got == []
    client.on("ask", lambda value: value + 1)
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    socket.emit("ask", 6, callback=lambda value: answers.put((value, threading.current_thread().name[:14])))
    assert answers.get(timeout=60) == (7, "sio_pg handler")
    served.sio.emit("said", "end", room="a")
    while "end" not in got:
        time.sleep(0.01)  # the commit of another connection arrives when its notification does
    assert (got, others) == (["in a transaction", "end"], [])
    assert socket.disconnect() is None
    assert [found.sid for found in served.sio.fetch_sockets()] == [other.get_sid()]


def test_the_answers_that_arrived_are_blocking_sockets_too(served: Served, pg_dsn: str) -> None:
    sid = served.client().get_sid()
    other = Server(client_manager=PostgresManager(pg_dsn))
    other.start()
    background, server = other._ready()
    background.call(server.manager.node.requests._services.pop, "sockets")  # as of another version
    with pytest.raises(NoAnswer) as error:
        served.sio.fetch_sockets(timeout=3600)
    [socket] = error.value.answers
    assert (socket.sid, socket.join("a"), served.sio.rooms(sid)) == (sid, None, [sid, "r", "a"])
    other.shutdown()


def test_a_wrong_connection_is_refused_by_name(served: Served) -> None:
    with pytest.raises(ConfigurationError, match="psycopg Connection"):
        served.sio.emit("said", connection=object())


def test_a_session_block_may_be_entered_again_by_its_thread(served: Served) -> None:
    sid = served.client().get_sid()
    with served.sio.session(sid) as session:
        with served.sio.session(sid):
            pass
        session["n"] = 1
    assert served.sio.get_session(sid) == {"n": 1}


def test_session_blocks_of_threads_take_turns(served: Served) -> None:
    sid = served.client().get_sid()

    def count() -> None:
        for _ in range(5):
            with served.sio.session(sid) as session:
                session["n"] = session.get("n", 0) + 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert served.sio.get_session(sid) == {"n": 20}


def test_listeners_and_middlewares_run_in_threads(served: Served) -> None:
    seen: list[Any] = []

    @served.sio.use
    def admit(sid: str, environ: dict[str, Any], auth: Any) -> None:
        seen.append(("use", threading.current_thread().name[:14]))

    @served.sio.use_event("/")
    def change(sid: str, event: str, args: list[Any]) -> None:
        seen.append(("use_event", threading.current_thread().name[:14]))
        args[0] += 1

    @served.sio.on_any
    def listen(event: str, sid: str, *args: Any) -> None:
        seen.append((event, *args, threading.current_thread().name[:14]))

    assert served.client().call("echo", 1) == 2
    thread = "sio_pg handler"
    assert seen == [("use", thread), ("echo", 1, thread), ("use_event", thread)]


def test_a_function_of_all_namespaces_takes_the_namespace(served: Served) -> None:
    seen: list[Any] = []
    served.sio.use("*")(lambda namespace, _sid, _environ, _auth: seen.append(namespace))
    served.sio.use_event("*")(lambda namespace, _sid, event, args: seen.append((namespace, event, args)))
    assert served.client().call("echo", 1) == 1
    assert seen == ["/", ("/", "echo", [1])]


def test_a_manager_that_only_emits_moves_and_disconnects_members(served: Served, pg_dsn: str) -> None:
    client, muted, seen = served.client(), served.client(), queue.Queue()
    served.sio.enter_room(muted.get_sid(), "muted")
    served.sio.on_server_event("e", lambda *args: seen.put(("root", *args)))
    served.sio.on_server_event("e", namespace="/chat")(lambda *args: seen.put(("chat", *args)))
    with PostgresManager(pg_dsn, write_only=True) as writer:
        writer.sockets_join("r", ["x", "y"], skip_room="muted")
        writer.sockets_leave("r", "y")
        writer.server_side_emit("e", 1, namespace="/chat")
        assert seen.get(timeout=20) == ("chat", 1)
        writer.server_side_emit("e", 2)
        assert seen.get(timeout=20) == ("root", 2)
        assert [socket.sid for socket in served.sio.fetch_sockets("x")] == [client.get_sid()]
        assert served.sio.fetch_sockets("y") == []
        writer.disconnect_sockets("x")
    assert [socket.sid for socket in served.sio.fetch_sockets()] == [muted.get_sid()]


def test_a_class_based_namespace(served: Served) -> None:
    class Chat(Namespace):
        def on_said(self, sid: str, text: str) -> list[str]:
            self.enter_room(sid, text)
            return self.rooms(sid)

    served.sio.register_namespace(Chat("/chat"))
    client = Client()
    served.clients.append(client)
    client.connect(f"http://127.0.0.1:{served.web.server_port}", namespaces=["/chat"], transports=["websocket"])
    assert client.call("said", "a", namespace="/chat")[1:] == ["a"]


def test_a_call_in_the_event_loop_is_refused(served: Served) -> None:
    background, _ = served.sio._ready()
    with pytest.raises(RuntimeError, match="event loop of the server"):
        background.call(served.sio.emit, "said")


def test_after_a_shutdown_only_a_start_connects_again(pg_dsn: str) -> None:
    sio = Server(client_manager=PostgresManager(pg_dsn))
    sio.emit("said")
    sio.shutdown()
    sio.shutdown()
    assert not [thread for thread in threading.enumerate() if thread.name == "sio_pg loop"]
    while [thread for thread in threading.enumerate() if thread.name == "sio_pg handler 1"]:
        time.sleep(0.01)  # it ends by itself
    with pytest.raises(StoreUnavailable):
        sio.emit("said")
    sio.start()
    sio.emit("said")
    sio.shutdown()


def test_a_disconnect_handler_may_call_while_the_manager_is_closed(served: Served) -> None:
    client = served.client()
    got = events(client, "left")
    left: list[Any] = []

    @served.sio.event
    def disconnect(sid: str, reason: str) -> None:
        served.sio.manager.close()  # it is being closed, which this does not wait for
        left.append(served.sio.emit("left", sid, key=sid))

    served.sio.manager.close()
    assert (left, got) == ([True], [])
    with pytest.raises(StoreUnavailable):
        served.sio.emit("left")


def test_a_start_during_a_close_is_refused_and_works_afterwards(served: Served) -> None:
    closing, go = threading.Event(), threading.Event()

    @served.sio.event
    def disconnect(sid: str, reason: str) -> None:
        closing.set()
        go.wait()

    served.client()
    thread = threading.Thread(target=served.sio.shutdown)
    thread.start()
    closing.wait()
    with pytest.raises(StoreUnavailable, match="being closed"):
        served.sio.start()
    go.set()
    thread.join()
    served.sio.start()
    assert served.sio.manager.health().ok


def test_starts_closes_and_calls_of_many_threads(pg_dsn: str) -> None:
    sio = Server(client_manager=PostgresManager(pg_dsn))
    wrong: list[BaseException] = []

    def act(number: int) -> None:
        actions = [
            sio.start,
            sio.shutdown,
            lambda: sio.emit("said"),
            sio.manager.close,
            sio.start,
            sio.manager.health,
        ]
        for i in range(30):
            try:
                actions[(i + number) % len(actions)]()
            except StoreUnavailable:
                pass
            except BaseException as e:  # noqa: BLE001 - of a thread
                wrong.append(e)

    threads = [threading.Thread(target=act, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    sio.start()
    sio.emit("said")
    assert len([thread for thread in threading.enumerate() if thread.name == "sio_pg loop"]) == 1
    sio.shutdown()


def test_a_call_while_the_event_loop_stops_gets_an_answer() -> None:
    for _ in range(100):
        background = Background()
        calling = threading.Barrier(4)

        def call(background: Background, calling: threading.Barrier) -> None:
            calling.wait()
            with contextlib.suppress(StoreUnavailable):
                while True:
                    background.call(int)

        threads = [threading.Thread(target=call, args=[background, calling]) for _ in range(3)]
        for thread in threads:
            thread.start()
        calling.wait()
        background.stop()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    "use",
    [
        'PostgresManager("postgresql://app@db/app", write_only=True)',
        "Client()",
        'SimpleClient().connect("http://127.0.0.1:1")',
        'made_before.emit("said")',
    ],
)
def test_a_process_with_green_threads_is_refused_by_name(use: str) -> None:
    program = f"""
import warnings
from gevent import monkey
from sio_pg_adapter import Client, ConfigurationError, PostgresManager, SimpleClient
made_before = PostgresManager("postgresql://app@db/app", write_only=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # patched late, as in a worker of gunicorn
    monkey.patch_all()
try:
    {use}
except ConfigurationError as error:
    assert str(error).startswith("gevent has patched"), error
else:
    raise SystemExit("not refused")
"""
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", program]) == 0


@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
def test_a_manager_serves_a_forked_process(pg_dsn: str, used: bool) -> None:
    program = f"""
import os
from sio_pg_adapter import PostgresManager
manager = PostgresManager({pg_dsn!r}, write_only=True)
if {used}:
    manager.emit("said", "parent")
child = os.fork()
manager.emit("said", "child" if not child else "after")
manager.close()
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", program]) == 0
    with psycopg.connect(pg_dsn) as connection:
        [count] = connection.execute("SELECT count(*) FROM sio_packets").fetchone()
    assert count == (3 if used else 2)


def test_the_database_is_found_at_the_end_of_the_process() -> None:
    """Disconnect handlers run then, and a lost connection is replaced."""
    program = """
import atexit
import concurrent.futures.thread
from sio_pg_adapter.sync.background import Background
background = Background()
atexit.register(lambda: print(background.call(background.loop.getaddrinfo, "localhost", 5432)[0][4][1]))
"""
    assert subprocess.check_output([sys.executable, "-c", program]) == b"5432\n"


@pytest.mark.parametrize("mode", ["eventlet", "gevent", "gevent_uwsgi"])
def test_a_mode_that_cannot_work_is_refused_by_name(mode: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{mode}.*threading"):
        Server(client_manager=PostgresManager("postgresql://app@db/app"), async_mode=mode)


def test_what_does_not_belong_together_is_refused() -> None:
    manager = PostgresManager("postgresql://app@db/app")
    with pytest.raises(ConfigurationError, match=r"sio_pg_adapter\.Server"):
        socketio.Server(client_manager=manager)
    with pytest.raises(ConfigurationError, match="PostgresManager"):
        Server(client_manager=socketio.Manager())
    with pytest.raises(ConfigurationError, match="pool"):
        PostgresManager("postgresql://app@db/app", pool=object())
    Server(client_manager=manager)
    with pytest.raises(ConfigurationError, match="one server"):
        Server(client_manager=manager)


def test_reports_to_the_admin_ui_are_stopped_by_a_call_that_blocks(served: Served) -> None:
    instrumented = served.sio.instrument(auth=False, server_stats_interval=0.01)
    served.sio.start()
    operator = Client(reconnection=False)
    served.clients.append(operator)
    reports: queue.Queue[Any] = queue.Queue()
    operator.on("server_stats", reports.put, namespace="/admin")
    operator.connect(f"http://127.0.0.1:{served.web.server_port}", namespaces=["/admin"])
    assert reports.get(timeout=10)["clientsCount"] == 1
    instrumented.shutdown()
    assert instrumented.stats_task is None
    instrumented.uninstrument()
    served.sio.shutdown()
    instrumented.shutdown()  # the server has ended, too
