"""Never run: what `mypy --strict` of an application sees. A `type: ignore` that nothing needs is an error, too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, assert_type

from sio_pg_adapter import (
    AsyncClient,
    AsyncNamespace,
    AsyncPostgresManager,
    AsyncServer,
    BlockingSocket,
    Client,
    ConfigurationError,
    ConnectionStateRecovery,
    Health,
    Namespace,
    PostgresManager,
    Server,
    SimpleClient,
    SioPgError,
    StoredEvent,
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
    lifespan,
    migrate,
    server_side_emit,
    server_side_emit_async,
)

Connect = Callable[[str, dict[str, Any], Any], Awaitable[None]]

manager = AsyncPostgresManager("postgresql://", schema="chat", max_queued_packets=10)
AsyncPostgresManager(dns="postgresql://")  # type: ignore[call-arg]
AsyncPostgresManager(max_queued_packets="10")  # type: ignore[arg-type]

sio = AsyncServer(manager, async_mode="asgi", connection_state_recovery=True)
AsyncServer(manager, connection_state_recovery={"max_disconnection_duration": 60})
AsyncServer(
    manager, connection_state_recovery=ConnectionStateRecovery(accepts=lambda environ, auth: bool(environ or auth))
)
AsyncServer(manager, connection_state_recovery=60)  # type: ignore[arg-type]
ConnectionStateRecovery(60)  # type: ignore[call-arg]


# -- handlers keep their types -------------------------------------------------------------------------------
@sio.event
async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None: ...


@sio.event(namespace="/chat")
async def say(sid: str, text: str) -> int:
    return len(text)


@sio.on("*", namespace="/chat")
async def other(event: str, sid: str, *args: Any) -> None: ...


@sio.use
async def token(sid: str, environ: dict[str, Any], auth: Any) -> None: ...


@sio.use("/chat")
async def chat_token(sid: str, environ: dict[str, Any], auth: Any) -> None: ...


@sio.on_session_expired
async def gone(sid: str, namespace: str, session: Any) -> None: ...


@sio.on_session_expired(namespace="/chat")
def gone_from_chat(sid: str, namespace: str, session: Any) -> int:
    return len(sid)


@sio.use_event
async def check(sid: str, event: str, args: list[Any]) -> bool:
    return bool(args)


@sio.on_any("/chat")
def note(event: str, sid: str, *args: Any) -> None: ...


@sio.on_any_outgoing()
async def note_outgoing(event: str, sid: str, *args: Any) -> None: ...


@sio.use("*")
async def token_of_any(namespace: str, sid: str, environ: dict[str, Any], auth: Any) -> None: ...


@sio.use  # type: ignore[type-var]
def not_async(sid: str) -> None: ...


sio.on("say", say)


async def handlers() -> None:
    assert_type(await connect("sid", {}, None), None)
    assert_type(await say("sid", "text"), int)
    await say("sid", 7)  # type: ignore[arg-type]
    assert_type(await other("event", "sid", 1), None)
    assert_type(await token("sid", {}, None), None)
    assert_type(await chat_token("sid", {}, None), None)
    assert_type(await gone("sid", "/", {}), None)
    assert_type(gone_from_chat("sid", "/", {}), int)
    assert_type(await check("sid", "event", []), bool)
    assert_type(note("event", "sid", 1), None)


# -- what is called -------------------------------------------------------------------------------------------
async def server(session: object) -> None:
    assert_type(sio.recovered("sid", "/chat"), bool)
    assert_type(await sio.fetch_rooms("sid"), list[str])
    assert_type(await sio.enter_room("sid", "room", since=await sio.position()), str | None)
    assert_type(sio.last_position("sid"), str | None)
    await sio.enter_room("sid", "room", since=7)  # type: ignore[arg-type]
    assert_type(await sio.emit("event", {"id": 7}, room="room", connection=session), bool | None)
    await sio.emit("event", None, None, None, None, None, None, False, session)  # type: ignore[call-arg]
    assert_type(await sio.disconnect("sid"), None)
    assert_type(await sio.send("text", room="room", skip_room=["muted"], key="key"), bool | None)
    [socket] = await sio.fetch_sockets("room", local=True)
    assert_type(socket.handshake.headers, Mapping[str, str])
    assert_type(await socket.join(["x", "y"]), None)
    assert_type(await sio.server_side_emit("event", 1, namespace="/chat"), None)
    assert_type(await manager.sockets_join("room", "x", skip_room="muted"), None)
    assert_type(await sio.leave_room("sid", "room", "/chat", connection=session), None)
    assert_type(await sio.sockets_leave("user:7", ["a", "b"], connection=session), None)
    assert_type(await sio.disconnect_sockets("user:7", connection=session), None)
    assert_type(await manager.close_room("room", connection=session), None)
    await sio.enter_room("sid", "room", "/", "position")  # type: ignore[call-arg]
    assert_type(await sio.history("room", since="position", limit=10), list[StoredEvent])
    assert_type((await sio.history(None))[0].args, tuple[Any, ...])
    await sio.history(7)  # type: ignore[arg-type]
    assert_type(await manager.history("room", "/chat"), list[StoredEvent])
    assert_type(await manager.health(), Health)
    assert_type((await manager.health()).lag, int)
    async with manager as started:
        assert_type(started, AsyncPostgresManager)
    async with lifespan(sio):
        pass


class Chat(AsyncNamespace):
    async def on_say(self, sid: str, text: str) -> None:
        assert_type(await self.emit("said", text, room="room", key="key"), bool | None)
        assert_type(await self.leave_room(sid, "room", connection=object()), None)
        assert_type(self.recovered(sid), bool)
        assert_type(await self.fetch_rooms(sid), list[str])
        assert_type(await self.position(), str)
        assert_type(await self.enter_room(sid, "room", since=self.last_position(sid)), str | None)


async def elsewhere(connection: object) -> None:
    assert_type(emit(connection, "event", room=["a", "b"], key="key"), bool | None)
    assert_type(await emit_async(connection, "event", key="key"), bool | None)
    emit(connection, "event", key=7)  # type: ignore[arg-type]
    emit(connection, 7)  # type: ignore[arg-type]
    assert_type(enter_room(connection, "sid", "room", namespace="/chat"), None)
    assert_type(leave_room(connection, room="room", members_of=["a", "b"], schema="chat"), None)
    assert_type(close_room(connection, "room"), None)
    assert_type(disconnect(connection, room="user:7", skip_room="kept"), None)
    assert_type(server_side_emit(connection, "event", 1, {}), None)
    assert_type(await server_side_emit_async(connection, "event", namespace="/chat"), None)
    assert_type(await enter_room_async(connection, "sid", "room"), None)
    assert_type(await leave_room_async(connection, room="room", members_of="user:7"), None)
    assert_type(await close_room_async(connection, "room"), None)
    assert_type(await disconnect_async(connection, "sid"), None)
    enter_room(connection, 7, "room")  # type: ignore[arg-type]
    assert_type(migrate.sql("chat"), str)


client = AsyncClient()


@client.event
async def said(text: str) -> int:
    return len(text)


async def use_client() -> None:
    assert_type(await said("text"), int)
    assert_type(await client.connect("http://localhost", namespaces=["/chat"]), None)
    assert_type(client.recovered("/chat"), bool)


blocking = Client(reconnection_delay=0.1)


@blocking.event(namespace="/chat")
def shouted(text: str) -> int:
    return len(text)


def use_blocking_clients() -> None:
    assert_type(shouted("text"), int)
    assert_type(blocking.connect("http://localhost", namespaces=["/chat"]), None)
    assert_type(blocking.recovered("/chat"), bool)
    assert_type(blocking.connected, bool)
    blocking.emit(7)  # type: ignore[arg-type]
    assert_type(SimpleClient().recovered(), bool)


def errors(error: StoreUnavailable) -> None:
    assert_type(error.may_be_stored, bool)
    above: SioPgError = error
    connection: ConnectionError = error
    value: ValueError = ConfigurationError()
    print(above, connection, value)


threads = Server(PostgresManager("postgresql://"), connection_state_recovery=True)


@threads.use
def admit(sid: str, environ: dict[str, Any], auth: Any) -> None: ...


@threads.event
def spoken(sid: str, text: str) -> int:
    return len(text)


@threads.on_server_event("spoken", namespace="/chat")
def spoken_elsewhere(text: str) -> int:
    return len(text)


class BlockingChat(Namespace):
    def on_said(self, sid: str, text: str) -> None:
        assert_type(self.emit("said", text, room="r", key="k"), bool | None)


def use_threads() -> None:
    assert_type(spoken("sid", "text"), int)
    assert_type(threads.emit("said", "text", room="r", volatile=True), bool | None)
    assert_type(threads.enter_room("sid", "r", since="position"), str | None)
    assert_type(threads.rooms("sid"), list[str])
    assert_type(threads.recovered("sid"), bool)
    assert_type(threads.position(), str)
    assert_type(threads.history("r"), list[StoredEvent])
    assert_type(threads.manager.health(), Health)
    [socket] = threads.fetch_sockets("r", local=True)
    assert_type(socket, BlockingSocket)
    assert_type(socket.handshake.headers, Mapping[str, str])
    assert_type(socket.join(["x", "y"]), None)
    assert_type(BlockingChat("/").fetch_sockets(), list[BlockingSocket])
    with threads.session("sid") as session:
        print(session)
    threads.emit("said", key=7)  # type: ignore[arg-type]
    assert_type(PostgresManager(write_only=True).sockets_join("r", ["x"], skip_room="muted"), None)
    assert_type(PostgresManager(write_only=True).server_side_emit("event", 1, namespace="/chat"), None)
    assert_type(PostgresManager(write_only=True).emit("said", 1), bool | None)
