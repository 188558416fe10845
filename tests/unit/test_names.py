"""Names: which the log stores, and which are refused."""

from __future__ import annotations

import pytest

from sio_pg_adapter.errors import ConfigurationError, NotSerializable, PayloadTooLarge
from sio_pg_adapter.log.names import (
    MAX_NAME_BYTES,
    first_named,
    key_name,
    namespace_name,
    room_name,
    text_name,
    text_names,
)


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize("name", ["", "42", "ünï", "🙂", "a b", '"; DROP TABLE x; --', "x" * 512, "é" * 256])
def test_case_98_names_that_are_text_stay_as_they_are(name):
    assert text_name(name, "room") == name


def test_a_subclass_of_str_becomes_plain_text():
    assert type(text_name(Text("a"), "room")) is str


@pytest.mark.parametrize("name", [42, 0, None, True, 1.5, b"room", ("a", 1), ["a"], frozenset("a")])
def test_case_32_names_of_another_type_are_refused_by_type(name):
    with pytest.raises(NotSerializable, match=f"room takes text.*{type(name).__name__}"):
        text_name(name, "room")


@pytest.mark.parametrize(("name", "message"), [("a\0b", "NUL"), ("\ud83d", "surrogate"), ("a\udc00", "surrogate")])
def test_text_that_postgresql_does_not_hold_is_refused(name, message):
    with pytest.raises(NotSerializable, match=f"skip_sid.*{message}"):
        text_name(name, "skip_sid")


@pytest.mark.parametrize("name", ["x" * 513, "é" * 257, "🙂" * 129])
def test_case_98_names_over_512_bytes_are_refused_by_their_size(name):
    with pytest.raises(PayloadTooLarge, match=f"namespace has {len(name.encode())} bytes.*{MAX_NAME_BYTES}"):
        text_name(name, "namespace")


@pytest.mark.parametrize(
    ("name", "error"),
    [("x" * 81 + "\0", NotSerializable), ("x" * 81 + "\ud83d", NotSerializable), ("x" * 513, PayloadTooLarge)],
)
def test_a_message_shows_the_beginning_of_a_name(name, error):
    with pytest.raises(error, match=f": '{'x' * 80}'"):
        text_name(name, "room")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, ()),
        ("a", ("a",)),
        (["a", "b", "a"], ("a", "b")),
        (("b", None, "a"), ("b", "a")),
        (frozenset({"a"}), ("a",)),
    ],
)
def test_one_name_or_several(value, names):
    assert text_names(value, "room") == names
    if names:
        assert text_names(value, "room", needed=True) == names


@pytest.mark.parametrize("value", ["", [], (), set(), [""], ["", None]])
def test_a_room_without_a_name_is_not_everybody(value):
    with pytest.raises(ConfigurationError, match="room takes one name or several, or None for everybody"):
        text_names(value, "room")
    assert text_names(value, "skip_sid") == ()


@pytest.mark.parametrize("value", [None, "", [], ["", None]])
@pytest.mark.parametrize("what", ["room", "members_of"])
def test_names_that_are_needed_are_not_everybody(value, what):
    with pytest.raises(ConfigurationError, match=rf"{what} takes one name or several, but .* has no name"):
        text_names(value, what, needed=True)


@pytest.mark.parametrize("value", [42, ["a", 42], {"a": 1}, b"a", [("a", 1)]])
def test_case_32_several_names_of_another_type_are_refused(value):
    with pytest.raises(NotSerializable, match="room takes text"):
        text_names(value, "room")


@pytest.mark.parametrize(("value", "name"), [(None, "/"), ("", "/"), (Text(""), "/"), ("/", "/"), ("/x", "/x")])
def test_none_and_empty_text_are_the_default_namespace(value, name):
    assert namespace_name(value) == name


@pytest.mark.parametrize("value", [0, False, b"", [], {}, (), 5])
def test_a_namespace_of_another_type_is_not_the_default_one(value):
    with pytest.raises(NotSerializable, match="namespace takes text"):
        namespace_name(value)


@pytest.mark.parametrize("to", [None, "", [], (), set(), frozenset()])
def test_where_to_names_none_room_is_meant(to):
    assert first_named(to, "room") == "room"


@pytest.mark.parametrize("to", [0, False, {}, b"", range(0), "a", ["a"], [""]])
def test_what_to_names_rightly_or_wrongly_is_meant(to):
    assert first_named(to, "room") is to


def test_nobody_is_in_or_out_of_the_room_that_means_everybody():
    assert room_name("a") == "a"
    with pytest.raises(ConfigurationError, match="room takes a name that is not empty"):
        room_name("")


def test_a_key_is_text_or_none():
    assert (key_name(None), key_name("order-7"), key_name(" ")) == (None, "order-7", " ")
    assert type(key_name(Text("a"))) is str
    with pytest.raises(ConfigurationError, match="key takes text that is not empty"):
        key_name("")
    for other in (0, False, b"", ["a"]):
        with pytest.raises(NotSerializable, match="key takes text"):
            key_name(other)
