"""The delivery: what each record does to the clients of this node."""

from __future__ import annotations

import asyncio

import pytest

from sio_pg_adapter.local.client import Ack, QueueLimit, State
from sio_pg_adapter.local.recent import Recent
from sio_pg_adapter.log.records import Held, Kind, Record
from support.local import Local, event


def record(offset, *rooms, body='["e"]', namespace="/", skip=(), skip_rooms=()):
    return Record(offset, Kind.EVENT, namespace, rooms or ("",), tuple(skip), tuple(skip_rooms), body=body)


def sent(client):
    return client.connection.socket.sent()


def hold(client, generation):
    client.begin_opening()
    client.opened(Held(1, generation))


# -- events of the log -----------------------------------------------------------------------------------
async def test_an_event_reaches_each_member_of_its_rooms_once():
    local = Local()
    a, b = local.client("a", "x", "y"), local.client("b", "y")
    c, elsewhere = local.client("c"), local.client("d", "x", namespace="/other")
    local.delivery.apply(record(1, "x", "y"))
    assert [sent(client) for client in (a, b, c, elsewhere)] == [['2["e"]'], ['2["e"]'], [], []]
    assert (a.sent, b.sent, c.sent) == (1, 1, 0)
    local.delivery.apply(record(2, body='["all"]'))
    assert [sent(client) for client in (a, b, c, elsewhere)] == [['2["all"]'], ['2["all"]'], ['2["all"]'], []]
    assert (local.counters.applied, local.counters.stored) == (2, 5)


async def test_an_event_does_not_reach_members_of_the_rooms_that_it_skips():
    local = Local()
    a, b, c = local.client("a", "x"), local.client("b", "x", "muted"), local.client("c", "x", "away")
    local.client("d", "muted", namespace="/other")
    local.delivery.apply(record(1, "x", skip_rooms=["muted", "away", "nobody"]))
    assert [sent(client) for client in (a, b, c)] == [['2["e"]'], [], []]
    local.delivery.apply(Record(2, Kind.LEAVE, "/", ("muted",), sid="b"))
    local.delivery.apply(record(3, skip_rooms=["muted", "a"]))
    assert [len(sent(client)) for client in (a, b, c)] == [0, 1, 1]


async def test_clients_that_keep_offsets_get_one_as_the_last_argument():
    local = Local()
    plain, keeping = local.client("a"), local.client("b", recoverable=True)
    local.delivery.apply(record(7, body='["e",1]'))
    assert sent(plain) == ['2["e",1]']
    assert sent(keeping) == [f'2["e",1,"{local.epochs.encode(7, "/")}"]']


async def test_the_frames_of_a_record_are_made_once_for_all_recipients():
    local = Local()
    first, second = (local.client(sid, recoverable=True).connection.socket.queue for sid in "ab")
    local.delivery.apply(record(7))
    assert first.get_nowait() is second.get_nowait()


async def test_a_client_that_is_skipped_gets_nothing():
    local = Local()
    a, b = local.client("a", "x"), local.client("b", "x")
    local.delivery.apply(record(1, "x", skip=["a"]))
    assert (sent(a), sent(b)) == ([], ['2["e"]'])


async def test_an_event_that_a_replay_has_sent_is_not_sent_again():
    local = Local()
    client = local.client("a", sent=5)
    for offset in (4, 5, 6):
        local.delivery.apply(record(offset, body=f'["{offset}"]'))
    assert sent(client) == ['2["6"]']


@pytest.mark.parametrize("state", [State.CONNECTING, State.REPLAYING])
async def test_a_client_that_is_not_live_is_sent_nothing_by_the_cursor(state):
    local = Local()
    client = local.client("a", "x", state=state)
    local.delivery.apply(record(1, "x", "a", ""))
    assert sent(client) == [] and client.sent == 0


async def test_a_slow_client_is_reported_and_the_event_that_found_it_is_sent():
    local = Local(QueueLimit(packets=2, bytes=1_000_000))
    slow, other = local.client("slow"), local.client("other")
    for offset in (1, 2, 3):
        local.delivery.apply(record(offset))
        sent(other)
    assert local.ended.calls == []  # three wait, and the limit is checked before each
    local.delivery.apply(record(4, body='["last"]'))
    assert local.ended.calls == [("slow", "slow")]
    assert len(sent(slow)) == 4 and sent(other) == ['2["last"]']


async def test_a_connection_that_raises_keeps_no_event_from_the_others(caplog):
    class Broken:
        def empty(self):
            return True

        def put_nowait(self, _):
            raise OSError("broken pipe")

    local = Local()
    broken, other = local.client("broken"), local.client("other")
    broken.connection.socket.queue = Broken()
    local.delivery.apply(record(1))
    assert sent(other) == ['2["e"]']
    assert local.ended.calls == [("broken", "broken")] and "broken pipe" in caplog.text


# -- records about a sid or a room -----------------------------------------------------------------------
@pytest.mark.parametrize(("generation", "calls"), [(3, [("taken", "a")]), (2, []), (1, [])])
async def test_a_newer_claim_of_its_session_takes_a_client_over(generation, calls):
    local = Local()
    hold(local.client("a", state=State.CONNECTING), 2)
    local.delivery.apply(Record(1, Kind.CLAIM, "/", sid="a", generation=generation))
    assert local.ended.calls == calls


async def test_a_claim_means_nothing_to_a_client_without_a_session():
    local = Local()
    local.client("a")
    local.delivery.apply(Record(1, Kind.CLAIM, "/", sid="a", generation=9))
    assert local.ended.calls == []


@pytest.mark.parametrize("state", [State.CONNECTING, State.REPLAYING, State.LIVE])
async def test_a_kick_ends_a_client_in_whatever_state_with_its_last_session_data(state):
    local = Local()
    local.client("a", state=state)
    local.delivery.apply(Record(1, Kind.KICK, "/", sid="a", data='{"v":1}'))
    assert local.ended.calls == [("kicked", "a", '{"v":1}')]


async def test_a_record_about_a_sid_of_another_node_or_namespace_changes_nothing():
    local = Local()
    local.client("a")
    for kind, sid, namespace in ((Kind.KICK, "b", "/"), (Kind.KICK, "a", "/other"), (Kind.ENTER, "b", "/")):
        local.delivery.apply(Record(1, kind, namespace, ("x",), sid=sid))
    assert local.ended.calls == [] and local.members("x") == set()


async def test_a_live_client_enters_and_leaves_with_the_record():
    local = Local()
    client = local.client("a")
    local.delivery.apply(Record(1, Kind.ENTER, "/", ("x",), sid="a"))
    assert local.members("x") == {"a"} and client.memberships.current() == ["x"]
    local.delivery.apply(Record(2, Kind.LEAVE, "/", ("x",), sid="a"))
    assert local.members("x") == set() and client.memberships.rooms == {}


async def test_a_client_in_a_replay_keeps_the_rooms_it_was_in_for_the_events_of_that_time():
    local = Local()
    client = local.client("a", state=State.REPLAYING)
    local.delivery.apply(Record(1, Kind.ENTER, "/", ("x",), sid="a"))
    local.delivery.apply(Record(3, Kind.LEAVE, "/", ("x",), sid="a"))
    assert client.memberships.rooms == {"x": [(1, 3)]} and local.members("x") == set()


async def test_a_closed_room_has_no_members_live_or_in_a_replay():
    local = Local()
    live, replaying = local.client("a", "x", "y"), local.client("b", "x", state=State.REPLAYING)
    elsewhere = local.client("c", "x", namespace="/other")
    local.delivery.apply(Record(4, Kind.CLOSE, "/", ("x",)))
    assert local.members("x") == set() and local.members("y") == {"a"}
    assert live.memberships.current() == ["y"] and replaying.memberships.rooms == {"x": [(0, 4)]}
    assert elsewhere.memberships.current() == ["x"] and local.members("x", "/other") == {"c"}


async def test_the_members_of_a_room_move_whatever_their_state_as_of_the_record():
    local = Local()
    live, replaying = local.client("a", "x"), local.client("b", "x", state=State.REPLAYING)
    skipped, other, elsewhere = local.client("c", "x"), local.client("d"), local.client("e", "x", namespace="/other")
    local.delivery.apply(Record(4, Kind.MEMBERS_ENTER, "/", ("y", "z"), ("c",), members=("x",)))
    assert local.members("y") == local.members("z") == {"a"}
    assert replaying.memberships.rooms == {"x": [(0, None)], "y": [(4, None)], "z": [(4, None)]}
    local.delivery.apply(Record(6, Kind.MEMBERS_LEAVE, "/", ("x", "z"), members=("z", "c")))
    assert local.members("x") == local.members("z") == set() and live.memberships.current() == ["y"]
    assert replaying.memberships.rooms == {"x": [(0, 6)], "y": [(4, None)], "z": [(4, 6)]}
    assert (skipped.memberships.current(), other.memberships.current()) == ([], [])
    assert elsewhere.memberships.current() == ["x"]
    local.delivery.apply(Record(7, Kind.MEMBERS_LEAVE, "/", ("a", "y"), members=("y",)))
    assert local.members("a") == {"a"} and local.members("y") == set()  # its own room stays


async def test_all_members_of_a_room_are_kicked_whatever_their_state():
    local = Local()
    for sid, state in (("a", State.LIVE), ("b", State.REPLAYING), ("c", State.CONNECTING), ("d", State.LIVE)):
        local.client(sid, "x", state=state)
    local.client("e")
    local.delivery.apply(Record(1, Kind.MEMBERS_KICK, "/", ("",), ("d",), members=("x",)))
    assert sorted(local.ended.calls) == [("kicked", sid, None) for sid in "abc"]


# -- from replay to live -----------------------------------------------------------------------------------
async def test_a_client_catches_up_with_what_it_is_due_and_goes_live():
    local, recent = Local(), Recent(0)
    client = local.client("a", "x", state=State.REPLAYING, sent=2, recoverable=True)
    for each in (
        record(1, body='["sent"]'),
        record(3, "x", body='["due"]'),
        record(4, "y", body='["of another room"]'),
        record(5, body='["skipped"]', skip=["a"]),
        record(6, body='["of another namespace"]', namespace="/other"),
        record(7, "a", body='["own"]'),
    ):
        recent.add(each)
    local.delivery.catch_up(client, recent, 9)
    assert sent(client) == [
        f'2["due","{local.epochs.encode(3, "/")}"]',
        f'2["own","{local.epochs.encode(7, "/")}"]',
    ]
    assert (client.state, client.sent, local.members("x")) == (State.LIVE, 9, {"a"})


@pytest.mark.parametrize("recovered", [False, True])
async def test_a_replayed_event_is_counted_apart_if_the_client_had_missed_it(recovered):
    local = Local()
    client = local.client("a", state=State.CONNECTING)
    if recovered:
        client.resume(Held(1, 2), after=0, data={})
    local.delivery.replay(client, record(3))
    assert client.sent == 3 and sent(client) == ['2["e"]']
    assert (local.counters.replayed, local.counters.stored) == ((1, 0) if recovered else (0, 1))


# -- events that are not stored ------------------------------------------------------------------------------
async def test_an_unstored_event_ends_in_no_string_for_clients_that_keep_offsets():
    local = Local()
    plain, keeping = local.client("a"), local.client("b", recoverable=True)
    local.delivery.unstored(event(body='["e","text"]'))
    local.delivery.unstored(event(body='["e",1]'))
    assert sent(plain) == ['2["e","text"]', '2["e",1]']
    assert sent(keeping) == ['2["e","text",null]', '2["e",1]']
    assert local.counters.unstored == 4


async def test_an_unstored_event_is_for_live_members_that_are_not_skipped():
    local = Local()
    live, skipped = local.client("a", "x"), local.client("b", "x")
    replaying, other = local.client("c", "x", state=State.REPLAYING), local.client("d")
    local.delivery.unstored(event("x", skip=("b",)))
    assert [sent(client) for client in (live, skipped, replaying, other)] == [['2["e"]'], [], [], []]
    local.rooms.go_live(replaying)
    assert sent(replaying) == []


async def test_an_unstored_event_does_not_move_the_offset():
    local = Local()
    client = local.client("a", sent=5)
    local.delivery.unstored(event())
    assert client.sent == 5


# -- questions -----------------------------------------------------------------------------------------------
async def test_a_volatile_event_is_not_for_a_client_that_does_not_take_what_it_is_sent():
    local = Local()
    client = local.client("a")
    for n in range(2):  # in one tick the socket's writer cannot have taken the first
        local.delivery.unstored(event(body=f'["v",{n}]'), volatile=True)
    await asyncio.sleep(0)
    local.delivery.unstored(event(body='["v",2]'), volatile=True)
    local.delivery.unstored(event(body='["kept"]'))
    local.delivery.unstored(event(body='["v",3]'), volatile=True)
    assert sent(client) == ['2["v",0]', '2["v",1]', '2["kept"]']
    local.delivery.unstored(event(body='["v",4]'), volatile=True)
    assert sent(client) == ['2["v",4]']


async def test_a_question_has_an_id_for_each_client_and_no_offset():
    local = Local()
    a, b = local.client("a", "x", recoverable=True), local.client("b", "x")
    asked = local.delivery.question(event("x", body='["q","text"]'), lambda _: Ack(print))
    assert [client for client, _ in asked] == [a, b]
    ids = [ack_id for _, ack_id in asked]
    assert ids[0] != ids[1]
    assert [sent(a), sent(b)] == [[f'2{ids[0]}["q","text"]'], [f'2{ids[1]}["q","text"]']]
    assert local.counters.unstored == 2


async def test_the_acknowledgement_of_a_question_is_expected_from_the_client_that_was_asked():
    local, answers = Local(), []
    a, b = local.client("a", "x"), local.client("b", "x")
    ((_, first), (_, second)) = local.delivery.question(
        event("x"), lambda client: Ack(lambda *args: answers.append((client.sid, args)))
    )
    assert a.take_ack(second) is b.take_ack(first) is None
    ack = a.take_ack(first)
    assert ack is not None
    ack.answered(1, 2)
    assert answers == [("a", (1, 2))]


async def test_a_question_waits_for_the_end_of_a_replay():
    local = Local()
    client = local.client("a", state=State.REPLAYING)
    ((_, ack_id),) = local.delivery.question(event(), lambda _: Ack(print))
    local.delivery.replay(client, record(3, body='["missed"]'))
    local.rooms.go_live(client)
    assert sent(client) == ['2["missed"]', f'2{ack_id}["e"]']


async def test_a_client_whose_connect_is_being_decided_is_not_asked():
    local = Local()
    client = local.client("a", state=State.CONNECTING)
    assert local.delivery.question(event(), lambda _: Ack(print)) == []
    assert not client.acks


# -- what else an event meets ----------------------------------------------------------------------------
async def test_a_sid_that_the_table_has_without_a_client_is_sent_nothing():
    local = Local()
    client = local.client("a", "x")
    for room in (None, "x"):
        local.table.basic_enter_room("nobody", "/", room, eio_sid="eio")
    local.delivery.apply(record(1, "x"))
    local.delivery.unstored(event("x"))
    local.delivery.apply(Record(2, Kind.MEMBERS_ENTER, "/", ("y",), members=("x",)))
    local.delivery.apply(Record(3, Kind.CLOSE, "/", ("x",)))
    assert len(sent(client)) == 2 and local.members("y") == {"a"} and local.members("x") == {"nobody"}


async def test_an_event_that_a_broken_connection_missed_is_not_counted_or_watched():
    local, seen = Local(), []
    local.watch.listeners.add("/", lambda *args: seen.append(args))

    class Broken:
        def empty(self):
            return True

        def put_nowait(self, _):
            raise OSError("broken pipe")

    local.client("broken").connection.socket.queue = Broken()
    local.client("other")
    local.delivery.apply(record(1))
    await asyncio.sleep(0)
    assert local.counters.stored == 1 and seen == [("e", "other")]


async def test_a_slow_client_is_cut_once_and_counted(caplog):
    local = Local(QueueLimit(packets=0, bytes=1_000_000))
    local.client("slow")
    for offset in range(1, 5):
        local.delivery.apply(record(offset))
    assert local.ended.calls == [("slow", "slow")] and local.counters.cut == 1
    assert "more than max_queued_packets or max_queued_bytes waited for slow [/]" in caplog.text


async def test_a_record_that_cannot_be_read_is_refused_with_its_fault():
    with pytest.raises(ValueError, match=r"^it cannot be read: KeyError: 'kind'$"):
        Local().delivery.apply(Record(1, Kind.UNREADABLE, "/", data="KeyError: 'kind'"))


@pytest.mark.parametrize(
    ("kind", "sid", "who"), [(Kind.ENTER, "b", "b [/]"), (Kind.MEMBERS_ENTER, None, "members of a room [/]")]
)
async def test_those_who_enter_the_own_room_of_a_client_are_reported(kind, sid, who, caplog):
    local, intruders = Local(), []
    local.client("a", state=State.CONNECTING)
    local.delivery.on_intruder = lambda *args: intruders.append(args)
    members = () if sid else ("x",)
    intrusion = Record(1, kind, "/", ("a",), sid=sid, members=members)
    local.delivery.apply(intrusion)
    local.delivery.apply(Record(2, kind, "/", ("y",), sid=sid, members=members))
    local.delivery.apply(Record(3, Kind.LEAVE, "/", ("a",), sid="b"))
    assert intruders == [(intrusion, "a")] and f"{who} cannot enter the room of another client's sid" in caplog.text


async def test_a_closed_room_that_is_a_clients_own_keeps_that_client():
    local = Local()
    local.client("a")
    local.delivery.apply(Record(1, Kind.CLOSE, "/", ("a",)))
    assert local.members("a") == {"a"}


async def test_a_claim_that_names_no_generation_takes_nobody_over():
    local = Local()
    hold(local.client("a", state=State.CONNECTING), 1)
    local.delivery.apply(Record(1, Kind.CLAIM, "/", sid="a"))
    assert local.ended.calls == []


async def test_members_that_move_do_not_move_a_client_that_has_claimed_their_session():
    local = Local()
    former = local.client("a", "x")
    claiming = local.client("b", "x", state=State.CONNECTING)
    local.clients.rename(claiming, "a")
    local.delivery.apply(Record(1, Kind.MEMBERS_ENTER, "/", ("y",), members=("x",)))
    local.delivery.apply(Record(2, Kind.MEMBERS_KICK, "/", ("",), members=("x",)))
    assert former.memberships.current() == ["x", "y"] and claiming.memberships.current() == ["x"]
    assert local.ended.calls == [("kicked", "a", None)]


# -- listeners -------------------------------------------------------------------------------------------
async def test_listeners_see_each_event_that_a_client_is_sent_and_no_other():
    local, seen = Local(), []
    local.watch.listeners.add("/", lambda *args: seen.append(args))
    local.client("live", "x")
    client = local.client("connecting", state=State.CONNECTING)
    local.delivery.apply(record(1, "x", body='["stored"]'))
    local.delivery.apply(record(2, "nobody", body='["for nobody"]'))
    local.delivery.apply(Record(3, Kind.EVENT, "/", ("x",)))
    local.delivery.replay(client, record(1, body='["missed"]'))
    local.delivery.unstored(event("x", body='["unstored",1]'))
    local.delivery.only_here(event("connecting", body='["here"]'))
    local.delivery.question(event("x", body='["question"]'), lambda _: Ack(print))
    await asyncio.sleep(0)
    assert seen == [
        ("stored", "live"),
        ("missed", "connecting"),
        ("unstored", "live", 1),
        ("here", "connecting"),
        ("question", "live"),
    ]


# -- events of this node alone -----------------------------------------------------------------------------
@pytest.mark.parametrize(("recoverable", "text"), [(False, '2["e","text"]'), (True, '2["e","text",null]')])
async def test_an_event_of_this_node_waits_for_the_client_that_it_is_for(recoverable, text):
    local = Local()
    live = local.client("live", recoverable=recoverable)
    connecting = local.client("a", "x", state=State.CONNECTING, recoverable=recoverable)
    local.delivery.only_here(event("a", "live", body='["e","text"]'))
    local.delivery.only_here(event("x", body='["e","for its room"]'))
    assert (sent(live), sent(connecting)) == ([text], [])
    local.rooms.go_live(connecting)
    assert sent(connecting) == [text]


async def test_an_unstored_event_is_not_for_a_client_for_which_too_much_waits():
    local = Local(QueueLimit(packets=1, bytes=1_000_000))
    client = local.client("a")
    for n in range(3):
        local.delivery.unstored(event(body=f'["{n}"]'))
    assert sent(client) == ['2["0"]', '2["1"]'] and local.counters.unstored == 2
    assert local.ended.calls == []


@pytest.mark.parametrize("recoverable", [False, True])
async def test_the_frames_of_an_unstored_event_are_made_once_for_all_recipients(recoverable):
    local = Local()
    queues = [local.client(sid, recoverable=recoverable).connection.socket.queue for sid in "ab"]
    local.delivery.unstored(event())
    first, second = (queue.get_nowait() for queue in queues)
    assert first is second


async def test_a_client_that_is_asked_for_in_several_ways_is_asked_once():
    local = Local()
    client = local.client("a", "x", state=State.REPLAYING)
    connecting = local.client("b", state=State.CONNECTING)
    asked = local.delivery.question(event("x", "a", "b"), lambda _: Ack(print))
    assert [each for each, _ in asked] == [client, connecting]
    assert local.counters.unstored == 2 and client.acks.keys() == {asked[0][1]}


async def test_a_client_for_which_too_much_waits_behind_its_replay_is_cut():
    local = Local(QueueLimit(packets=1, bytes=1_000_000))
    client = local.client("a", state=State.REPLAYING)
    for n in range(3):
        assert local.ended.calls == []
        local.delivery.question(event(body=f'["{n}"]'), lambda _: Ack(print))
    assert local.ended.calls == [("slow", "a")]
    local.rooms.go_live(client)
    assert len(sent(client)) == 3  # the one that found it is sent, too
