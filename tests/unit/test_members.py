"""Moves of all members of rooms: which names are taken, and what they mean."""

from __future__ import annotations

import pytest

from sio_pg_adapter.cluster.members import member_move
from sio_pg_adapter.errors import ConfigurationError, NotSerializable
from sio_pg_adapter.log.names import EVERYBODY
from sio_pg_adapter.log.records import Kind, MemberMove


@pytest.mark.parametrize("kind", [Kind.ENTER, Kind.LEAVE])
def test_the_members_of_some_rooms_enter_or_leave_others(kind):
    assert member_move(kind, "/", ["x", "y"], ["z", "w", "z"], "a") == MemberMove(
        kind, "/", ("x", "y"), ("z", "w"), (), ("a",)
    )


def test_no_room_is_everybody_in_the_namespace():
    assert member_move(Kind.ENTER, "/chat", None, "x") == MemberMove(Kind.ENTER, "/chat", (EVERYBODY,), ("x",))


def test_a_kick_has_no_rooms_to_enter():
    assert member_move(Kind.KICK, "/", "x") == MemberMove(Kind.KICK, "/", ("x",), (EVERYBODY,))


@pytest.mark.parametrize("kind", [Kind.ENTER, Kind.LEAVE])
@pytest.mark.parametrize("rooms", [None, "", []])
def test_a_move_names_the_rooms_to_enter_or_leave(kind, rooms):
    with pytest.raises(ConfigurationError, match="rooms takes one name or several"):
        member_move(kind, "/", "x", rooms)


@pytest.mark.parametrize(
    ("arguments", "name"), [((42, "x"), "room"), (("x", 42), "rooms"), (("x", "y", 42), "skip_sid")]
)
def test_a_name_of_another_type_is_refused_by_its_argument(arguments, name):
    with pytest.raises(NotSerializable, match=f"^{name} takes text"):
        member_move(Kind.ENTER, "/", *arguments)


@pytest.mark.parametrize("room", [[None], [], (), "", [""]])
def test_a_room_without_a_name_does_not_move_everybody(room):
    with pytest.raises(ConfigurationError, match="or None for everybody"):
        member_move(Kind.KICK, "/", room)
