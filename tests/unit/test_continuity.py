"""Continuity: what happens to the clients of a node whose log, or whose sessions, are not what they were."""

from __future__ import annotations

import asyncio
import json

import asyncpg
import pytest

from sio_pg_adapter.errors import PositionInvalid, PositionLost
from sio_pg_adapter.local import continuity as module
from sio_pg_adapter.local.client import State
from sio_pg_adapter.log.offsets import Epoch
from sio_pg_adapter.log.records import Kind
from support.postgres import Postgres
from support.stored import FIRST_OF_SECOND, KEY, SECOND, StoredNode, position


@pytest.fixture
async def node():
    return StoredNode(await Postgres.opened())


def held_by_the_node(node, *sessions):
    node.postgres.answers["held_by"] = [{"id": id_, "generation": generation} for id_, generation in sessions]


# -- epochs ----------------------------------------------------------------------------------------------
async def test_a_log_that_is_as_it_was_changes_nothing(node):
    node.holding("a", 1, 2)
    codec = node.epochs.codec
    await node.continuity.check()
    assert node.epochs.codec is codec and node.ended.calls == [] and node.cursor.offset == 7
    assert node.statements() == ["in_epoch", "epochs"]


async def test_an_epoch_is_begun_if_the_running_one_is_not_of_this_server(node):
    node.postgres.answers["in_epoch"] = [[False]]
    await node.continuity.check()
    assert node.statements() == ["in_epoch", "check_epoch", "epochs"]


@pytest.mark.parametrize("end", [7, 8])
async def test_a_new_epoch_above_the_cursor_closes_only_clients_whose_sessions_it_lacks(node, end):
    node.holding("kept", 1, 2)
    node.holding("taken", 2, 1)
    node.holding("lost", 3, 1)
    node.client("without a session")
    held_by_the_node(node, (1, 2), (2, 2))
    node.epochs_of_the_log(Epoch(0, KEY, end), SECOND)
    await node.continuity.check()
    assert node.ended.calls == [("taken", "taken"), ("taken", "lost")]
    assert node.postgres.arguments_of("held_by") == [("node",)]
    assert node.cursor.offset == 7 and node.epochs.knows(FIRST_OF_SECOND)


async def test_without_sessions_a_new_epoch_asks_for_none(node):
    node.client("without a session")
    node.epochs_of_the_log(Epoch(0, KEY, 7), SECOND)
    await node.continuity.check()
    assert node.ended.calls == [] and node.statements() == ["in_epoch", "epochs"]
    assert node.epochs.knows(FIRST_OF_SECOND)


@pytest.mark.parametrize(
    "epochs", [[Epoch(0, KEY, 6), SECOND], [Epoch(0, b"m" * 32)], [SECOND]], ids=["cut off", "restored", "truncated"]
)
async def test_a_log_that_lacks_what_the_node_applied_ends_its_sessions_and_closes_its_clients(node, epochs, caplog):
    node.holding("a", 1, 2)
    node.client("connecting", state=State.CONNECTING)
    node.holding("b", 2, 1)
    node.epochs_of_the_log(*epochs)
    node.postgres.answers["head"] = [[FIRST_OF_SECOND]]
    await node.continuity.check()
    [(_, kinds, *columns)] = node.postgres.arguments_of("write")
    assert kinds == [Kind.END, Kind.END]
    assert [json.loads(args) for args in columns[9]] == [{"id": 1, "generation": 2}, {"id": 2, "generation": 1}]
    assert node.ended.calls == [("taken", "a"), ("taken", "connecting"), ("taken", "b")]
    assert node.cursor.offset == FIRST_OF_SECOND
    assert node.epochs.codec.epochs == {epoch.number: epoch for epoch in epochs}
    assert "the log is another one" in caplog.text


async def test_a_node_that_has_applied_nothing_takes_any_log(node):
    node.cursor.jump(0)
    node.client("a")
    node.epochs_of_the_log(Epoch(0, b"m" * 32))
    await node.continuity.check()
    assert node.ended.calls == [] and node.cursor.offset == 0
    assert node.epochs.codec.epochs[0].key == b"m" * 32


# -- positions -------------------------------------------------------------------------------------------
async def test_a_position_of_a_known_epoch_needs_no_query(node):
    assert await node.continuity.offset_of(position(5), "/", argument="since") == 5
    with pytest.raises(PositionInvalid, match="until has a position of another namespace"):
        await node.continuity.offset_of(position(5), "/chat", argument="until")
    assert node.statements() == []


async def test_a_position_of_an_epoch_that_has_just_begun_is_read_for(node):
    epochs = Epoch(0, KEY, 7), SECOND
    node.epochs_of_the_log(*epochs)
    text = position(FIRST_OF_SECOND, "/", *epochs)
    assert await node.continuity.offset_of(text, "/", argument="since") == FIRST_OF_SECOND
    with pytest.raises(PositionInvalid, match="until has a position of another namespace"):
        await node.continuity.offset_of(text, "/chat", argument="until")


async def test_positions_that_are_made_up_are_read_for_once_in_a_while(node):
    text = position(FIRST_OF_SECOND, "/", SECOND)
    for _ in range(2):
        with pytest.raises(PositionLost):
            await node.continuity.offset_of(text, "/", argument="since")
    assert node.statements() == ["in_epoch", "epochs"]


# -- servers ---------------------------------------------------------------------------------------------
async def test_a_node_uses_another_server_once_its_log_is_known(node, caplog, monkeypatch):
    monkeypatch.setattr(module, "RETRY", 0)
    node.postgres.answers["range"] = [{"floor": 7, "offset": None}]
    await node.cursor.start(node.delivery.apply, node.continuity)
    node.holding("a", 1, 2)
    held_by_the_node(node)
    node.epochs_of_the_log(Epoch(0, KEY, 7), SECOND)
    node.postgres.failures = [asyncpg.CannotConnectNowError("the database system is starting up")]
    followed = node.postgres.database.followed
    await node.continuity.follow()
    assert followed.confirmed and followed.era == 2  # one for each try
    assert caplog.text.count("the log of the server cannot be checked, trying again") == 1
    assert node.ended.calls == [("taken", "a")]
    for _ in range(10):
        await asyncio.sleep(0)
    assert node.postgres.arguments_of("range")  # the cursor looks for what it missed
    await node.cursor.close()


@pytest.mark.parametrize("is_own", [True, False])
async def test_the_log_of_another_server_is_read_on_new_connections_of_the_nodes_own_pool(is_own):
    """Idle ones may lead to the former server. A pool of the application is the application's."""
    node = StoredNode(await Postgres.opened(is_own=is_own))
    await node.continuity.follow()
    expired = ["expire_connections"] if is_own else []
    assert [name for name in node.statements() if name != "version"] == [*expired, "in_epoch", "epochs"]


async def test_a_node_that_cannot_know_the_log_uses_nothing_of_the_server(node):
    node.postgres.failures = [ValueError("not of the database")]
    with pytest.raises(ValueError, match="not of the database"):
        await node.continuity.follow()
    assert not node.postgres.database.followed.confirmed


# -- the cluster, and retention --------------------------------------------------------------------------
async def test_only_a_node_that_was_counted_dead_may_have_lost_sessions(node):
    node.holding("a", 1, 2)
    held_by_the_node(node)
    await node.continuity.returned(counted_dead=False)
    assert node.ended.calls == []
    await node.continuity.returned(counted_dead=True)
    assert node.ended.calls == [("taken", "a")]


async def test_a_session_that_ends_while_the_tables_are_read_is_not_taken(node, monkeypatch):
    client = node.holding("a", 1, 2)
    held_by_the_node(node)

    async def execute(*_, **__):
        client.end_session(deleted=True)
        return []

    monkeypatch.setattr(node.postgres, "fetch", execute)
    await node.continuity.returned(counted_dead=True)
    assert node.ended.calls == []


async def test_clients_that_missed_what_retention_deleted_are_closed(node, caplog):
    node.client("a")
    node.client("b", namespace="/chat")
    node.continuity.skipped(9)
    assert node.ended.calls == [("taken", "a"), ("taken", "b")]
    assert "retention deleted records that this node had not read, up to offset 9" in caplog.text


async def test_a_record_that_cannot_be_applied_closes_the_clients_of_its_namespace(node):
    node.client("a")
    node.client("b", namespace="/chat")
    node.continuity.missed("/chat")
    assert node.ended.calls == [("taken", "b")]
