"""The delicate protocols on two nodes, under schedules that put off what is ready.

Each schedule is one seed. If one fails, the test says which, and shrinks it: then it prints the few choices that the
fault needs. ``--schedule-seed`` runs that seed again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self

import asyncpg
import pytest

from sio_pg_adapter import AsyncPostgresManager, AsyncServer, ConnectionStateRecovery
from sio_pg_adapter.demo.history import KEEP
from sio_pg_adapter.local.appender import Appender
from sio_pg_adapter.local.client import State
from sio_pg_adapter.local.delivery import Delivery
from sio_pg_adapter.local.recent import Recent
from sio_pg_adapter.log.memberships import Memberships
from sio_pg_adapter.log.records import Held, Kind, Record
from sio_pg_adapter.log.verdict import Claim
from sio_pg_adapter.server import claiming
from sio_pg_adapter.store import sessions
from support.interleaving import PATIENCE, Interleaving, Scenario, claims, kicks, leaves, moves, refusals, seam
from support.nodes import Node
from support.shuffled_loop import Schedule, ShuffledLoop, shrink

SCENARIOS = [seam, claims, kicks, moves, leaves, refusals]
SHORT, SOAK = 75, 2_500
"""Schedules of each scenario."""

MUTANT_SCHEDULES = 300
"""Schedules in which a fault has to show."""


@contextlib.asynccontextmanager
async def two_nodes(dsn: str) -> AsyncIterator[list[Node]]:
    nodes = []
    for _ in range(2):
        manager = AsyncPostgresManager(dsn)
        sio = AsyncServer(
            client_manager=manager,
            connection_state_recovery=ConnectionStateRecovery(max_disconnection_duration=3600),
            async_mode="asgi",
            monitor_clients=False,
            ping_interval=3600,
        )
        await manager.start()
        nodes.append(Node(sio, manager))
    try:
        yield nodes
    finally:
        for node in nodes:
            await node.sio.shutdown()


class Explorer:
    """Runs schedules of a scenario on two nodes that they share."""

    def __init__(self, dsn: str, owner_dsn: str) -> None:
        self._dsn, self._owner_dsn = dsn, owner_dsn
        self.patience = PATIENCE

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        self._runner = self._stack.enter_context(asyncio.Runner(loop_factory=ShuffledLoop))
        self._db = self._runner.run(asyncpg.connect(self._owner_dsn))
        self._stack.callback(lambda: self._runner.run(self._db.close()))
        self._runner.run(self._db.execute(KEEP))
        nodes = two_nodes(self._dsn)
        self._nodes = self._runner.run(nodes.__aenter__())
        self._stack.callback(lambda: self._runner.run(nodes.__aexit__(None, None, None)))
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def run(self, scenario: Scenario, schedule: Schedule) -> list[str]:
        interleaving = Interleaving(self._nodes, self._db, schedule.seed)
        return self._runner.run(interleaving.run(scenario, schedule, self.patience))

    def replace_in_function(self, function: str, old: str, new: str) -> None:
        """Change the text of a function in the database."""
        text = self._runner.run(self._db.fetchval("SELECT pg_get_functiondef($1::regproc)", function))
        assert text.count(old) == 1
        self._runner.run(self._db.execute(text.replace(old, new)))

    def failing(self, scenario: Scenario, seeds: range) -> tuple[Schedule, list[str]] | None:
        """Return the first schedule that fails, with what was wrong."""
        for seed in seeds:
            schedule = Schedule(seed)
            if wrong := self.run(scenario, schedule):
                return schedule, wrong
        return None

    def hold(self, scenario: Scenario, seeds: range) -> None:
        """Check that no schedule fails."""
        if (found := self.failing(scenario, seeds)) is None:
            return
        schedule, wrong = found
        small = shrink(schedule, lambda candidate: bool(self.run(scenario, candidate)))
        pytest.fail(f"seed {schedule.seed}: {wrong}\nchoices that it needs: {small.choices}")


def seeds_of(request: pytest.FixtureRequest, count: int) -> range:
    seed = request.config.getoption("--schedule-seed")
    return range(count) if seed is None else range(seed, seed + 1)


@pytest.fixture
def explorer(pg_dsn: str, pg_owner_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Explorer]:
    monkeypatch.setattr(claiming, "TAKEOVER_WAIT", 0.1)  # what follows holds whether or not the former one lets go
    monkeypatch.setattr(sessions, "ENDS_AT_ONCE", 1)  # an end waits for another one
    with Explorer(pg_dsn, pg_owner_dsn) as explorer:
        yield explorer


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_schedule_breaks_a_guarantee(explorer: Explorer, request, scenario: Scenario):
    explorer.hold(scenario, seeds_of(request, SHORT))


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_schedule_of_many_breaks_a_guarantee(explorer: Explorer, request, scenario: Scenario):
    explorer.hold(scenario, seeds_of(request, SOAK))


# -- mutants: the code without one of its mechanisms -----------------------------------------------------------------


def ignore_sent(monkeypatch: pytest.MonkeyPatch, _: Explorer) -> None:
    """A live client is sent what its replay has brought already."""
    event = Delivery._event

    def mutant(self: Delivery, record: Record) -> None:
        live = [c for c in self._clients.by_sid.get(record.namespace, {}).values() if c.state is State.LIVE]
        marks = [client.sent for client in live]
        for client in live:
            client.sent = 0
        event(self, record)
        for client, mark in zip(live, marks, strict=True):
            client.sent = max(mark, client.sent)

    monkeypatch.setattr(Delivery, "_event", mutant)


def go_live_later(monkeypatch: pytest.MonkeyPatch, _: Explorer) -> None:
    """The loop turns between the last replayed event and going live."""

    def mutant(self: Delivery, client: Any, recent: Any, cursor: int) -> None:
        for record in recent.events(client.namespace, ("", client.sid, *client.memberships.rooms), client.sent):
            if client.memberships.due(record):
                self.replay(client, record)
        client.skip_to(cursor)

        async def go_live() -> None:
            if client.state is State.REPLAYING:
                self._rooms.go_live(client)

        going.append(asyncio.get_running_loop().create_task(go_live()))

    going: list[asyncio.Task[None]] = []
    monkeypatch.setattr(Delivery, "catch_up", mutant)


def ignore_claims(monkeypatch: pytest.MonkeyPatch, _: Explorer) -> None:
    """A node does not look at the generation of a claim, and keeps its client."""
    change = Delivery._change

    def mutant(self: Delivery, client: Any, record: Record) -> None:
        if record.kind is not Kind.CLAIM:
            change(self, client, record)

    monkeypatch.setattr(Delivery, "_change", mutant)


def release_any_generation(_: pytest.MonkeyPatch, explorer: Explorer) -> None:
    """A former holder lets go of the session of the present one."""
    explorer.replace_in_function("sio_release", "IF s.generation = v_generation THEN", "IF s.id IS NOT NULL THEN")


def do_not_wait_for_kick(monkeypatch: pytest.MonkeyPatch, _: Explorer) -> None:
    """A kick returns before its node has met it."""

    async def mutant(self: Appender, _: Any) -> None:
        return

    monkeypatch.setattr(Appender, "_effect", mutant)


def ignore_kick_while_claiming(monkeypatch: pytest.MonkeyPatch, explorer: Explorer) -> None:
    """A kick between a claim and the recovery is not seen."""
    drop_moves(monkeypatch, explorer, lambda record: record.kind is Kind.KICK)


def ignore_moves_while_claiming(monkeypatch: pytest.MonkeyPatch, explorer: Explorer) -> None:
    """A room change between a claim and the recovery is not seen."""
    drop_moves(monkeypatch, explorer, lambda record: record.kind in (Kind.ENTER, Kind.LEAVE))


def drop_moves(monkeypatch: pytest.MonkeyPatch, _: Explorer, dropped: Callable[[Record], bool]) -> None:
    recent_moves = Recent.moves
    monkeypatch.setattr(Recent, "moves", lambda *args: [r for r in recent_moves(*args) if not dropped(r)])


def ignore_memberships(monkeypatch: pytest.MonkeyPatch, _: Explorer) -> None:
    """A replay from memory brings the events of all rooms that the client was ever in."""
    monkeypatch.setattr(Memberships, "due", lambda *_: True)


def ignore_ends_that_wait(monkeypatch: pytest.MonkeyPatch, _: Explorer) -> None:
    """A claim may be faster than the end of the session."""
    claim = sessions.Sessions.claim

    async def mutant(self: sessions.Sessions, namespace: str, presented: Claim, *args: Any, **options: Any) -> Any:
        self._ends.clear()
        return await claim(self, namespace, presented, *args, **options)

    monkeypatch.setattr(sessions.Sessions, "claim", mutant)


def keep_refused_sessions(monkeypatch: pytest.MonkeyPatch, _: Explorer) -> None:
    """A refused client still holds its session."""

    async def mutant(self: sessions.Sessions, held: Held) -> str:
        return "{}"

    monkeypatch.setattr(sessions.Sessions, "end", mutant)


MUTANTS: list[tuple[Callable[[pytest.MonkeyPatch, Explorer], None], Scenario]] = [
    (ignore_sent, seam),
    (go_live_later, seam),
    (ignore_claims, claims),
    (release_any_generation, claims),
    (do_not_wait_for_kick, kicks),
    (ignore_kick_while_claiming, kicks),
    (ignore_moves_while_claiming, moves),
    (ignore_memberships, moves),
    (ignore_ends_that_wait, leaves),
    (keep_refused_sessions, refusals),
]


@pytest.mark.parametrize(("mutate", "scenario"), MUTANTS, ids=lambda value: value.__name__)
def test_a_schedule_finds_what_breaks_without_a_mechanism(
    explorer: Explorer, monkeypatch, mutate, scenario: Scenario
):
    mutate(monkeypatch, explorer)
    explorer.patience = 3.0  # some mutants leave a connection open that nobody closes
    found = explorer.failing(scenario, range(MUTANT_SCHEDULES))
    assert found is not None
    schedule, wrong = found
    print(f"schedule {schedule.seed}: {wrong}")
