"""The state machine of a client: every verb in every state, as the table in its module says."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace

import pytest

from sio_pg_adapter.local import client as module
from sio_pg_adapter.local.client import Ack, Client, InvalidTransition, QueueLimit, State
from sio_pg_adapter.log.memberships import Memberships
from sio_pg_adapter.log.records import Held
from sio_pg_adapter.wire.frames import frame
from sio_pg_adapter.wire.outbox import Outbox
from sio_pg_adapter.wire.transport import UNSENT_BYTES, Connection, Cork, TrafficCounter, Wire


def socket():
    """What a client needs of an Engine.IO socket."""
    return SimpleNamespace(sid="eio", closed=False, closing=False, queue=Outbox(), last_ping=None)


def client_in(state: State) -> Client:
    client = Client("/", "s", Connection(socket()), Memberships("s", 5), sent=5)
    if state is State.REPLAYING:
        client.begin_replay()
    elif state is State.LIVE:
        client.go_live()
    elif state is State.LEFT:
        client.depart()
    return client


VERBS = {
    "offer_session": lambda c: c.offer_session(),
    "begin_opening": lambda c: c.begin_opening(),
    "resume": lambda c: c.resume(Held(1, 2), after=7, data={}),
    "confirm_claim": lambda c: c.confirm_claim(),
    "follow": lambda c: c.follow(Memberships("s", 1)),
    "present": lambda c: c.present(3),
    "present_lost": lambda c: c.present_lost(),
    "enter_since": lambda c: c.enter_since("x", 3, "key"),
    "leave_since": lambda c: c.leave_since("x"),
    "answered": lambda c: c.answered(),
    "accept": lambda c: c.accept(),
    "begin_replay": lambda c: c.begin_replay(),
    "go_live": lambda c: c.go_live(),
    "lose_session": lambda c: c.lose_session(),
    "end_session": lambda c: c.end_session(),
    "close": lambda c: c.close("transport close"),
    "cut": lambda c: c.cut(),
    "begin_end": lambda c: c.begin_end(),
    "depart": lambda c: c.depart(),
    "finish": lambda c: c.finish(),
}


def table() -> dict[str, tuple[set[State], str]]:
    """The rows of the table in the module's docstring: the states a verb is allowed in, and what the client
    becomes."""
    row = r"^    ([A-Z, ]+|any) {2,}(\w+) {2,}([A-Z]+|the same) {2,}\S"
    rows = re.findall(row, module.__doc__ or "", re.MULTILINE)
    return {
        verb: (
            set(State) if states == "any" else {State[state] for state in re.findall("[A-Z]+", states)},
            becomes,
        )
        for states, verb, becomes in rows
    }


TABLE = table()


def test_the_table_has_every_verb():
    assert TABLE.keys() == VERBS.keys() | {"opened"}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", State)
async def test_a_verb_is_allowed_in_the_states_of_the_table_and_leads_where_it_says(state, verb):
    states, becomes = TABLE[verb]
    client = client_in(state)
    if state in states:
        VERBS[verb](client)
        assert client.state is (state if becomes == "the same" else State[becomes])
    else:
        with pytest.raises(InvalidTransition):
            VERBS[verb](client)
        assert client.state is state


# -- what the verbs do -----------------------------------------------------------------------------------
async def test_a_session_that_is_being_stored_is_waited_for():
    client = client_in(State.CONNECTING)
    with pytest.raises(InvalidTransition):
        client.opened(Held(1, 1))
    client.begin_opening()
    waiting = asyncio.create_task(client.opened_or_failed())
    await asyncio.sleep(0)
    assert client.is_opening and not waiting.done()
    client.opened(Held(1, 1))
    await waiting
    assert client.held == Held(1, 1) and not client.is_opening


async def test_a_claimed_session_is_sent_from_the_offset_that_was_presented():
    client = client_in(State.CONNECTING)
    client.resume(Held(1, 2), after=7, data={"v": 1})
    assert (client.held, client.after, client.sent, client.recovered, client.data) == (
        Held(1, 2),
        7,
        7,
        True,
        {"v": 1},
    )


async def test_a_claim_is_the_newest_for_one_tick():
    client = client_in(State.CONNECTING)
    client.confirm_claim()
    assert client.claimed is not None and client.claimed.lasts
    await asyncio.sleep(0)
    assert not client.claimed.lasts


async def test_frames_wait_for_the_end_of_a_replay_and_are_dropped_when_the_client_has_left():
    client = client_in(State.REPLAYING)
    client.send_behind_replay([frame("2[1]")])
    client.put([frame("2[0]")])
    queue = client.connection.socket.queue
    assert queue.qsize() == 1
    client.go_live()
    assert [queue.get_nowait().data for _ in range(2)] == ["2[0]", "2[1]"]
    client.depart()
    client.send_behind_replay([frame("2[2]")])
    assert queue.empty()


async def test_going_live_forgets_the_rooms_it_was_in_earlier():
    client = client_in(State.CONNECTING)
    client.follow(Memberships("s", 0, {"x": [(1, 4), (6, None)], "y": [(2, 3)]}))
    assert client.go_live() == ["x"]
    assert client.memberships.rooms == {"x": [(6, None)]}


async def test_what_a_replay_sent_does_not_count_toward_the_limit():
    limit = QueueLimit(packets=2, bytes=1_000)
    client = client_in(State.REPLAYING)
    for _ in range(5):
        client.put([frame("2[]")])
    client.go_live()
    assert not client.exceeds(limit)
    for _ in range(3):
        client.put([frame("2[]")])
    assert client.exceeds(limit)


async def test_one_large_frame_is_not_the_clients_fault_but_two_are():
    limit = QueueLimit(packets=100, bytes=1_000)
    client = client_in(State.LIVE)
    client.put([frame("2" + "x" * 5_000)])
    assert not client.exceeds(limit)
    client.put([frame("2" + "x" * 5_000)])
    assert client.exceeds(limit)


async def test_a_client_is_cut_once_and_only_while_its_connection_is_open():
    client = client_in(State.LIVE)
    assert client.cut() and not client.cut()
    closed = client_in(State.LIVE)
    closed.connection.socket.closing = True
    assert not closed.cut()


def a_recovered_client() -> Client:
    client = client_in(State.CONNECTING)
    client.resume(Held(1, 2), after=7, data={})
    return client


async def test_a_client_breaks_off_if_it_was_sent_what_it_missed_and_may_have_received_it():
    client = a_recovered_client()
    assert not client.breaks_off
    client.send_missed(8, [frame("2[]")])
    assert client.breaks_off and client.sent == 8
    client.connection.socket.last_ping = 1.0
    assert not client.breaks_off

    slow = a_recovered_client()
    slow.send_missed(8, [frame("2[]")])
    slow.cut()
    assert not slow.breaks_off

    new = client_in(State.CONNECTING)
    new.send_missed(8, [frame("2[]")])
    assert not new.breaks_off


async def test_nothing_is_put_on_a_closed_connection():
    client = client_in(State.LIVE)
    client.connection.socket.closed = True
    client.put([frame("2[]")])
    assert client.connection.socket.queue.empty() and not client.lasts


async def test_departing_tells_who_waits_for_acknowledgements_once():
    gone, answers = [], []
    client = client_in(State.LIVE)
    client.expect_ack(1, Ack(answers.append, lambda: gone.append(1)))
    client.expect_ack(2, Ack(answers.append))
    ack = client.take_ack(2)
    assert ack is not None and client.take_ack(2) is None
    client.depart()
    client.depart()
    assert client.state is State.LEFT
    assert gone == [1] and client.take_ack(1) is None


@pytest.mark.parametrize(("ending", "lasts"), [("close", False), ("end_session", False), ("accept", True)])
async def test_a_connect_goes_on_until_it_is_closed_or_kicked(ending, lasts):
    client = client_in(State.CONNECTING)
    assert client.lasts
    VERBS[ending](client)
    assert client.lasts is lasts


async def test_a_kick_takes_the_session_and_keeps_its_data():
    client = client_in(State.CONNECTING)
    client.begin_opening()
    client.opened(Held(1, 1))
    client.end_session(data={"v": 2}, deleted=True)
    assert (client.ended, client.held, client.data) == (True, None, {"v": 2})


async def test_an_answer_is_young_for_a_while():
    client = client_in(State.CONNECTING)
    assert not client.answered_within(10.0)
    client.answered()
    assert client.answered_within(10.0)


async def test_an_offset_is_never_skipped_backwards():
    client = client_in(State.LIVE)
    client.skip_to(9)
    client.skip_to(3)
    assert client.sent == 9
    client.send_event(12, [frame("2[]")])
    assert client.sent == 12


# -- what others ask -------------------------------------------------------------------------------------
async def test_a_new_client_has_received_and_holds_nothing():
    client = client_in(State.CONNECTING)
    flags = (client.lost, client.recoverable, client.recovered, client.accepted, client.ended, client.is_opening)
    assert not any(flags) and (client.after, client.since, client.held, client.claimed) == (0, {}, None, None)
    assert client.begin_end() is True and client.begin_end() is False


@pytest.mark.parametrize("state", State)
async def test_a_client_is_connected_from_its_answer_to_its_end(state):
    client = client_in(state)
    assert client.connected is (state in (State.REPLAYING, State.LIVE))
    assert client.lasts is (state is not State.LEFT)
    assert client.eio_sid == "eio" and client.label == "s [/]"


async def test_an_answer_is_noted_once_it_is_given():
    client = client_in(State.CONNECTING)
    assert client.is_answered is False
    client.answered()
    assert client.is_answered is True and client.answered_within(10.0) is True and not client.answered_within(-1.0)


async def test_nothing_is_waited_for_if_no_session_is_being_stored():
    await asyncio.wait_for(client_in(State.CONNECTING).opened_or_failed(), 5)


async def test_a_session_that_could_not_be_stored_is_not_held():
    client = client_in(State.CONNECTING)
    client.begin_opening()
    client.opened(None)
    assert client.held is None and not client.is_opening


async def test_the_verbs_of_a_connect_set_what_others_ask():
    client = client_in(State.CONNECTING)
    client.offer_session()
    client.present(3)
    client.present_lost()
    client.accept()
    client.save({"v": 1})
    assert (client.recoverable, client.proved, client.lost, client.accepted) == (True, 3, True, True)
    assert client.data == {"v": 1}
    client.close("ping timeout")
    client.close("transport close")
    assert client.closed == "transport close"


async def test_a_kick_of_the_sid_that_it_was_admitted_with_does_not_end_the_session_that_it_resumes():
    client = client_in(State.CONNECTING)
    client.end_session()
    client.resume(Held(1, 2), after=7, data={})
    assert not client.ended and client.lasts


@pytest.mark.parametrize("state", [State.CONNECTING, State.REPLAYING])
async def test_a_session_is_lost_whose_missed_events_were_deleted(state):
    client = client_in(State.CONNECTING)
    client.resume(Held(1, 2), after=7, data={})
    if state is State.REPLAYING:
        client.begin_replay()
        client.begin_replay()  # it is sent another page
    client.lose_session()
    assert client.held is None


async def test_an_end_that_does_not_delete_the_session_keeps_what_it_has():
    client = client_in(State.CONNECTING)
    client.resume(Held(1, 2), after=7, data={"v": 1})
    client.end_session()
    assert client.ended and client.held == Held(1, 2) and client.data == {"v": 1}


# -- rooms from a position on ----------------------------------------------------------------------------
async def test_a_room_that_is_left_before_the_replay_is_one_that_it_never_was_in():
    client = client_in(State.CONNECTING)
    client.enter_since("x", 3, "key")
    client.enter_since("y", 4, "key")
    assert client.sent == 3 and client.since == {"x": (3, "key"), "y": (4, "key")}
    client.leave_since("z")
    client.leave_since("x")
    assert client.since == {"y": (4, "key")} and client.memberships.rooms == {"y": [(4, None)]}
    client.enter_since("z", 9, "key")
    assert client.sent == 3


async def test_a_room_that_was_left_before_it_was_entered_from_a_position_was_its_own_up_to_there():
    client = client_in(State.CONNECTING)
    client.memberships.enter("x", 2)
    client.memberships.leave("x", 9)
    client.enter_since("x", 5, "key")
    client.leave_since("x")
    assert client.memberships.rooms == {"x": [(2, 6)]}


# -- the transport of its websocket ------------------------------------------------------------------------
class Transport:
    """A stand-in for the transport of a websocket."""

    def __init__(self):
        self.written, self.unsent = [], 0

    def is_closing(self):
        return False

    def get_write_buffer_size(self):
        return self.unsent

    def write(self, data):
        self.written.append(data)


async def test_frames_are_written_to_the_transport_while_nothing_waits_and_queued_otherwise():
    client, transport = client_in(State.LIVE), Transport()
    queue, cork = client.connection.socket.queue, Cork()
    wire = Wire(queue, transport, lambda: True, cork, compresses=False, traffic=TrafficCounter())
    client.connection.wire = wire
    client.put([frame("2[0]")])  # the websocket's writer is not idle yet
    assert queue.get_nowait().data == "2[0]" and transport.written == []
    wire.idle = True
    client.put([frame("2[1]")])
    assert transport.written == [frame("2[1]").wire] and queue.empty()
    assert client.takes_more is True
    transport.unsent = UNSENT_BYTES + 1
    assert client.takes_more is False


# -- limits ----------------------------------------------------------------------------------------------
async def test_as_many_packets_as_the_limit_may_wait_behind_what_a_replay_sent():
    limit = QueueLimit(packets=2, bytes=1_000)
    client = client_in(State.REPLAYING)
    queue = client.connection.socket.queue
    assert client.exceeds(limit) is False
    client.put([frame("2[]")] * 5)
    client.go_live()
    for _ in range(3):
        queue.get_nowait()
    client.put([frame("2[]")] * 2)
    assert client.exceeds(limit) is False
    client.put([frame("2[]")])
    assert client.exceeds(limit) is True
    for _ in range(3):
        queue.get_nowait()
    assert queue.qsize() == 2 and client.exceeds(limit) is False


async def test_as_many_bytes_as_the_limit_may_wait_besides_the_largest_frame():
    limit = QueueLimit(packets=100, bytes=100)
    client = client_in(State.LIVE)
    queue = client.connection.socket.queue
    for size in (40, 60, 70):
        client.put([frame("x" * size)])
        assert client.exceeds(limit) is False
    client.put([frame("x")])
    assert client.exceeds(limit) is True
    queue.get_nowait()
    assert client.exceeds(limit) is False
    client.put([frame("x" * 30)])
    assert client.exceeds(limit) is False  # 60 + 1 + 30


async def test_frames_of_a_replay_do_not_count_toward_the_bytes():
    client = client_in(State.REPLAYING)
    client.put([frame("x" * 500)] * 3)
    client.go_live()
    client.put([frame("x" * 60)] * 2)
    assert client.exceeds(QueueLimit(packets=100, bytes=100)) is False
    assert client.exceeds(QueueLimit(packets=100, bytes=59)) is True


async def test_what_engineio_queues_without_data_has_no_bytes():
    client = client_in(State.LIVE)
    queue = client.connection.socket.queue
    client.put([frame("x" * 60)] * 2)
    queue.put_nowait(SimpleNamespace(data=None))
    queue.put_nowait(None)  # the end of the connection
    assert client.exceeds(QueueLimit(packets=100, bytes=100)) is False


@pytest.mark.parametrize(("packets", "bytes_"), [(2, 1_000), (100, 20)])
async def test_as_much_as_the_limit_may_wait_for_the_end_of_a_replay(packets, bytes_):
    limit = QueueLimit(packets, bytes_)
    client = client_in(State.REPLAYING)
    client.put([frame("x" * 500)] * 200)  # what a replay sends does not count
    for _ in range(2):
        assert client.exceeds_behind_replay(limit) is False
        client.send_behind_replay([frame("x" * 5), frame("x" * 5)])
    assert client.exceeds_behind_replay(limit) is False
    client.send_behind_replay([frame("x")])
    assert client.exceeds_behind_replay(limit) is True
    client.depart()
    assert client.exceeds_behind_replay(limit) is False


async def test_behind_a_replay_that_has_ended_the_limit_is_that_of_a_live_client():
    client = client_in(State.LIVE)
    client.send_behind_replay([frame("x")])
    client.send_behind_replay([frame("x")])
    assert client.exceeds_behind_replay(QueueLimit(1, 1_000)) is True
    assert client.exceeds_behind_replay(QueueLimit(2, 1_000)) is False


async def test_a_client_takes_more_while_only_this_tick_filled_its_queue():
    client = client_in(State.LIVE)
    assert client.takes_more is True
    client.put([frame("x")])
    assert client.takes_more is True
    await asyncio.sleep(0)
    client.put([frame("x")])
    assert client.takes_more is False
    other = client_in(State.LIVE)
    other.connection.socket.queue.put_nowait(frame("x"))  # by another client of the connection
    assert other.takes_more is False


@pytest.mark.parametrize("closed", ["closed", "closing"])
async def test_nothing_is_put_on_a_connection_that_ends(closed):
    client = client_in(State.LIVE)
    setattr(client.connection.socket, closed, True)
    client.put([frame("2[]")])
    assert client.connection.socket.queue.empty()


async def test_nothing_at_or_below_what_was_sent_is_sent_again():
    client = client_in(State.LIVE)
    client.skip_to(4)
    assert client.sent == 5


# -- the end ---------------------------------------------------------------------------------------------
async def test_its_end_is_awaited_by_those_who_ask_before_and_after_it():
    client, other = client_in(State.LIVE), client_in(State.LIVE)
    waiting = asyncio.create_task(client.gone.wait())
    await asyncio.sleep(0)
    assert not client.gone.is_set() and client.gone is client.gone
    client.finish()
    assert await asyncio.wait_for(waiting, 5)
    other.finish()
    assert other.gone.is_set() and other.gone is other.gone


async def test_a_client_is_cut_once():
    client = client_in(State.LIVE)
    assert client.cut() is True and client.cut() is False
