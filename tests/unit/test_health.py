"""The state of a node, and reports of faults to the application: once when the database is away, and once when it is
back."""

from __future__ import annotations

import asyncio

import pytest

from sio_pg_adapter.errors import StoreUnavailable
from sio_pg_adapter.local.health import Diagnosis, FaultReports, Health
from sio_pg_adapter.store.listener import Listener
from sio_pg_adapter.store.pruner import Pruner
from sio_pg_adapter.store.relay import Relay
from sio_pg_adapter.tasks import Tasks
from support.postgres import Postgres
from support.stored import StoredNode


class Diagnosed(StoredNode):
    """A node of which all tasks run, but the one that listens."""

    def __init__(self, postgres):
        super().__init__(postgres)
        self.database = postgres.database
        self.relay, self.pruner = Relay(self.database, "node", self.counters), Pruner(self.database)
        self.diagnosis = self.diagnosis_of(follows=True)

    def diagnosis_of(self, *, follows):
        return Diagnosis(
            self.database, self.clients, self.cursor, self.writer, self.relay, self.pruner, follows=follows
        )

    def listener(self, task):
        listener = self.diagnosis.listener = Listener(self.database, list, print, print)
        listener._task = task
        return listener


@pytest.fixture
async def node():
    node = Diagnosed(await Postgres.opened())
    await node.cursor.start(node.delivery.apply, node.continuity)
    node.writer.start()
    node.pruner.start()
    yield node
    await node.pruner.close()
    await node.writer.close()
    await node.cursor.close()


async def test_a_node_without_a_fault_is_healthy(node):
    node.holding("a", 1, 2)
    node.holding("b", 2, 1)
    node.client("without a session")
    assert node.diagnosis.fault() == ""
    assert node.diagnosis.health() == Health(ok=True, cursor=7, lag=0, listener="reconnecting", sessions=2)
    listener = node.listener(asyncio.current_task())
    listener.connected = True
    listener.reconnects = 3
    assert node.diagnosis.health() == Health(ok=True, cursor=7, lag=0, listener="listening", sessions=2)
    assert node.diagnosis.listening is True and node.diagnosis.reconnects == 3


async def test_a_process_that_only_emits_has_no_cursor(node):
    await node.cursor.close()
    node.cursor.head = 9
    diagnosis = node.diagnosis_of(follows=False)
    assert diagnosis.health() == Health(ok=True, cursor=0, lag=0, listener="stopped", sessions=0)
    assert diagnosis.listening is False and diagnosis.reconnects == 0
    await node.writer.close()
    reason = "the writer's task has ended"
    assert diagnosis.health() == Health(ok=False, cursor=0, lag=0, listener="stopped", sessions=0, reason=reason)


async def test_a_fault_that_keeps_no_event_from_a_client_is_named_and_healthy(node):
    node.relay.faults = 2
    health = node.diagnosis.health()
    assert health.ok and health.reason.startswith("relay: 2 rows of sio_relay cannot be moved to the log")
    await node.pruner.close()
    health = node.diagnosis.health()
    assert health.ok and health.reason.startswith("the pruner's task has ended")
    node.relay.fault = "stuck"
    health = node.diagnosis.health()
    assert not health.ok and health.reason == "relay: stuck"


async def test_the_lag_of_the_cursor_is_a_fault(node):
    node.cursor.head = 9
    assert node.diagnosis.health() == Health(
        ok=False,
        cursor=7,
        lag=2,
        listener="reconnecting",
        sessions=0,
        reason="the cursor is 2 offsets behind the log",
    )


@pytest.mark.parametrize("kept", ["writer", "reader"])
async def test_a_connection_that_fails_is_a_fault(node, kept):
    getattr(node.database, kept).fault = "lost"
    assert node.diagnosis.fault() == f"{kept}: lost"


async def test_a_node_that_checks_the_log_of_its_server_has_a_fault(node):
    node.database.followed.forget()
    assert node.diagnosis.fault() == "the node is checking which log the server has"


async def test_a_task_that_has_ended_is_a_fault(node):
    await node.writer.close()
    assert node.diagnosis.fault() == "the writer's task has ended"
    await node.cursor.close()
    assert node.diagnosis.fault() == "the cursor's task has ended"
    listener = node.listener(None)
    listener.connected = True
    assert node.diagnosis.fault() == "LISTEN: the task has ended"
    listener.connected = False
    assert node.diagnosis.fault() == "LISTEN: not connected"
    listener.fault = "refused"
    assert node.diagnosis.fault() == "LISTEN: refused"
    assert node.diagnosis.listening is False and node.diagnosis.health().listener == "reconnecting"


async def reported(handler, *faults):
    tasks = Tasks()
    reports = FaultReports(handler, tasks)
    for fault in faults:
        reports.report(fault)
        await asyncio.sleep(0)
    await tasks.close()


async def test_a_fault_and_its_end_are_reported_once_each():
    seen = []
    await reported(seen.append, "", "LISTEN: gone", "writer: gone, too", "", "", "reader: gone")
    assert [error and str(error) for error in seen] == ["LISTEN: gone", None, "reader: gone"]
    assert isinstance(seen[0], StoreUnavailable) and not seen[0].may_be_stored


async def test_a_handler_may_be_async():
    seen = []

    async def handler(error):
        seen.append(error)

    await reported(handler, "gone", "")
    assert len(seen) == 2


async def test_a_handler_that_fails_is_logged_and_called_again(caplog):
    calls = []

    def handler(error):
        calls.append(error)
        raise ValueError("broken")

    await reported(handler, "gone", "")
    assert len(calls) == 2 and caplog.text.count("the error_handler failed") == 2


async def test_without_a_handler_nothing_is_reported(caplog):
    await reported(None, "gone", "")
    assert caplog.text == ""
