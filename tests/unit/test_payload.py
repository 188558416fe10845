"""Payloads: the JSON text and the binary parts of an event, and the values that have none."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import functools
import json
import math
import types
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sio_pg_adapter.errors import ConfigurationError, NotSerializable, PayloadTooLarge
from sio_pg_adapter.log import payload as module_of_payload
from sio_pg_adapter.log.names import RESERVED_EVENTS
from sio_pg_adapter.log.payload import (
    MAX_DEPTH,
    MAX_PARTS,
    check_depth,
    decode_event,
    encode_client_event,
    encode_event,
    encode_json,
    encode_values,
    levels,
    pack,
    unpack,
    with_binary,
)


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (None, '["e"]'),
        ("", '["e",""]'),
        (0, '["e",0]'),
        (7, '["e",7]'),
        ([1, 2], '["e",[1,2]]'),
        ((1, {}), '["e",1,{}]'),
        ((), '["e"]'),
        ((None,), '["e",null]'),
        (((1, 2),), '["e",[1,2]]'),
        ({"a": {"b": [None, True, 1.5]}}, '["e",{"a":{"b":[null,true,1.5]}}]'),
    ],
)
def test_case_3_none_one_value_a_list_and_a_tuple(data, body):
    assert encode_event("e", data) == (body, ())


@pytest.mark.parametrize("binary", [b"ab", bytearray(b"ab"), memoryview(b"ab")])
def test_case_37_binary_of_every_kind_becomes_bytes(binary):
    body, parts = encode_event("e", binary)
    assert body == '["e",{"_placeholder":true,"num":0}]'
    assert parts == (b"ab",)
    assert type(parts[0]) is bytes  # python-engineio closes the connection on a bytearray


def test_case_5_nested_binary_keeps_its_place():
    value = {"a": [b"1", {"b": b"2"}], "c": (b"", [b"1"])}
    body, parts = encode_event("e", (value, b"3"))
    assert parts == (b"1", b"2", b"", b"1", b"3")
    name, *arguments = with_binary(json.loads(body), parts)
    assert name == "e"
    assert arguments == [{"a": [b"1", {"b": b"2"}], "c": [b"", [b"1"]]}, b"3"]


def test_the_values_of_the_application_are_not_changed():
    value = {"a": [b"1"], "b": 2}
    encode_event("e", value)
    assert value == {"a": [b"1"], "b": 2}


@pytest.mark.parametrize(
    "value", ["", "\0", "a\0b", "\ud83d", "🙂", "\u2028", '"\\/', 2**53 + 1, -(2**63), 10**40, 0.1, 1e-320]
)
def test_case_45_odd_values_come_back_the_same(value):
    body, _ = encode_event("e", {"v": value, value if isinstance(value, str) else "k": 1})
    assert body.encode()  # no half of a surrogate pair, raw: PostgreSQL takes UTF-8
    assert "\0" not in body
    read = json.loads(body)[1]["v"]
    assert (type(read), read) == (type(value), value)


@dataclasses.dataclass
class Point:
    x: int


class Model:
    """A model of Pydantic, as far as it counts."""

    def model_dump(self): ...


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (math.nan, r"event 'e': nan at \[1\]"),
        ({"a": [1, {"b": math.inf}]}, r"inf at \[1\]\['a'\]\[1\]\['b'\]"),
        (("x", -math.inf), r"-inf at \[2\]"),
        ({"when": dt.datetime.now(dt.UTC)}, r"datetime at \[1\]\['when'\] has no JSON form\..* \.isoformat\(\)$"),
        ([{1, 2}], r"set at \[1\]\[0\] has no JSON form\..* list\(\)$"),
        (decimal.Decimal(1), r"Decimal at \[1\] has no JSON form\..* str\(\)$"),
        (uuid.UUID(int=1), r"UUID at \[1\] has no JSON form\..* str\(\)$"),
        ([frozenset()], r"frozenset at \[1\]\[0\] has no JSON form\..* list\(\)$"),
        (Model(), r"Model at \[1\] has no JSON form\..* \.model_dump\(mode=\"json\"\)$"),
        ({None: {1.5: {True: object()}}}, r"object at \[1\]\[None\]\[1\.5\]\[True\] has no JSON form"),
        ([None, "a", 1, 1.5, True, object()], r"object at \[1\]\[5\] has no JSON form"),
        (Point(1), r"Point at \[1\] has no JSON form\..* dataclasses\.asdict\(\)$"),
        (object(), r"object at \[1\] has no JSON form\..* json="),
        ({("a", 1): 2}, r"the key \('a', 1\) at \[1\] is of type tuple\..* str\(\)$"),
        ({"x": {b"k": 1}}, r"the key b'k' at \[1\]\['x'\] is of type bytes\..* str\(\)$"),
    ],
)
def test_case_45_values_without_a_json_form_are_named_by_their_place_with_a_remedy(data, message):
    with pytest.raises(NotSerializable, match=message):
        encode_event("e", data)


def test_the_word_nan_in_text_is_just_text():
    assert encode_event("e", ["NaN", "Infinity", {"NaN": 1}])[0] == '["e",["NaN","Infinity",{"NaN":1}]]'


def test_a_json_module_of_the_applications_decides_what_has_a_json_form():
    module = types.SimpleNamespace(dumps=functools.partial(json.dumps, default=str))
    when = dt.date(2026, 1, 2)
    assert encode_event("e", {"when": when, "bread": "NaN"}, module)[0] == '["e",{"when":"2026-01-02","bread":"NaN"}]'


def test_nan_of_a_json_module_of_the_applications_is_refused():
    module = types.SimpleNamespace(dumps=functools.partial(json.dumps, default=str))
    with pytest.raises(NotSerializable, match="nan at"):
        encode_event("e", [math.nan], module)


def test_a_json_module_may_leave_characters_unescaped_and_return_bytes():
    module = types.SimpleNamespace(dumps=lambda v, **kw: json.dumps(v, ensure_ascii=False, **kw).encode())
    assert encode_event("e", "ü🙂", module)[0] == '["e","ü🙂"]'
    unescaped = types.SimpleNamespace(dumps=functools.partial(json.dumps, ensure_ascii=False))
    assert encode_event("e", "\ud83d", unescaped)[0] == '["e","\\ud83d"]'


def test_what_a_json_module_takes_is_not_searched_for_values_without_a_json_form():
    """Only for floats, which a module may write though no parser reads them."""
    module = types.SimpleNamespace(dumps=functools.partial(json.dumps, skipkeys=True, default=str))
    value = {("a", 1): 1, "b": ["NaN", Point(1), None]}
    assert encode_event("e", value, module)[0] == '["e",{"b":["NaN","Point(x=1)",null]}]'
    with pytest.raises(NotSerializable, match=r"inf at \[1\]\['c'\] has no JSON form"):
        encode_event("e", {**value, "c": math.inf}, module)


def test_the_error_of_a_json_module_is_shown_if_nothing_else_is_wrong():
    def dumps(value, **_):
        raise ValueError("out of order")

    with pytest.raises(NotSerializable, match=r"^event 'e': out of order$"):
        encode_event("e", 1, types.SimpleNamespace(dumps=dumps))


@pytest.mark.parametrize("beside", [(), (b"a",)])
def test_a_value_that_holds_itself_is_refused(beside):
    value: list[object] = []
    value.append(value)
    place = r"\[1\]" + r"\[0\]" * 25 + r"\[0\.\.\.$"
    with pytest.raises(NotSerializable, match=f"^event 'e': it is nested too deeply at {place}"):
        encode_event("e", (value, *beside))


@pytest.mark.parametrize(
    ("size", "message"), [(196, r"object at \['k+'\]\[0\]"), (197, r"it is nested too deeply at \['k")]
)
def test_a_place_is_named_up_to_200_characters(size, message):
    with pytest.raises(NotSerializable, match=message):
        encode_json({"k" * size: [object()]}, "session")


def test_a_value_that_is_nested_too_deeply_next_to_binary_is_refused():
    with pytest.raises(NotSerializable, match="event 'e': it is nested too deeply"):
        encode_event("e", (b"a", nested(10_000)))


@pytest.mark.parametrize("name", [1, None, "a\0", "x" * 513])
def test_the_name_of_an_event_is_a_name(name):
    with pytest.raises((NotSerializable, PayloadTooLarge), match="event"):
        encode_event(name, None)


def test_an_event_over_256_mib_is_refused():
    with pytest.raises(PayloadTooLarge, match="event 'e' is larger"):
        encode_event("e", bytes(256 * 1024 * 1024))


def test_the_size_of_an_event_is_that_of_its_body_and_its_parts(monkeypatch):
    monkeypatch.setattr(module_of_payload, "MAX_BODY_BYTES", 40)
    body, parts = encode_event("e", b"abcde")
    assert len(body) + len(parts[0]) == 40
    with pytest.raises(PayloadTooLarge, match="event 'e' is larger than 40 bytes"):
        encode_event("e", b"abcdef")
    with pytest.raises(PayloadTooLarge, match="callback is larger than 40 bytes"):
        encode_values(["x" * 37], "callback")


@pytest.mark.parametrize("name", sorted(RESERVED_EVENTS))
def test_a_name_that_socketio_keeps_for_itself_is_no_event_for_clients(name):
    with pytest.raises(ConfigurationError, match=f"'{name}' cannot be emitted"):
        encode_client_event(name, None)


def test_clients_are_sent_as_many_binary_parts_as_they_take():
    body, parts = encode_client_event("e", [b"a"] * MAX_PARTS)
    assert decode_event(body, parts) == ("e", ([b"a"] * MAX_PARTS,))
    with pytest.raises(PayloadTooLarge, match=f"event 'e' has {MAX_PARTS + 1} binary values"):
        encode_client_event("e", [b"a"] * (MAX_PARTS + 1))


def test_session_data_names_the_key_that_is_at_fault():
    with pytest.raises(NotSerializable, match=r"session: the object at \['user'\]"):
        encode_json({"id": 1, "user": object()}, "session")
    with pytest.raises(NotSerializable, match="session: the object at the top"):
        encode_json(object(), "session")


class Number(int):
    """A number of a subclass, as the members of an ``IntEnum`` are."""


def test_a_number_of_a_subclass_keeps_its_place_next_to_binary():
    assert encode_event("e", (Number(7), b"a"))[0] == '["e",7,{"_placeholder":true,"num":0}]'


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(json_values, max_size=4))
def test_whatever_has_a_json_form_comes_back_the_same(arguments):
    body, parts = encode_event("e", tuple(arguments))
    assert json.loads(body) == ["e", *arguments]
    assert parts == ()


@given(
    st.recursive(
        st.binary() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=12,
    )
)
def test_binary_comes_back_in_its_place(value):
    body, parts = encode_event("e", (value,))
    assert with_binary(json.loads(body), parts) == ["e", value]


@given(st.lists(st.binary()))
def test_byte_strings_in_one_value(parts):
    assert list(unpack(pack(parts))) == parts


@pytest.mark.parametrize("size", range(1, 10))
def test_byte_strings_that_end_too_early_are_refused(size):
    packed = pack([b"ab", b"cdef"])[:-1]
    at_the_end_of_one = len(pack([b"ab"]))
    if size == at_the_end_of_one:
        assert list(unpack(packed[:size])) == [b"ab"]
    else:
        with pytest.raises(ValueError, match=f"^{size} bytes end in the middle of a packed string"):
            list(unpack(packed[:size]))


def test_an_event_is_decoded_with_the_module_of_the_application_if_that_can_read_it():
    def loads(text):
        if "9" in text:
            raise ValueError("too long a number")
        return ["by the module", *json.loads(text)[1:]]

    module = types.SimpleNamespace(loads=loads)
    assert decode_event('["e",1]', (), module) == ("by the module", (1,))
    assert decode_event('["e",9]', (), module) == ("e", (9,))


def test_a_placeholder_of_the_application_is_refused_only_next_to_binary():
    placeholder = {"_placeholder": True, "num": 0}
    assert encode_event("e", placeholder) == ('["e",{"_placeholder":true,"num":0}]', ())
    assert encode_event("e", placeholder, types.SimpleNamespace(dumps=functools.partial(json.dumps)))[1] == ()
    for nested_one in (placeholder, [1, placeholder], {"a": placeholder, "b": 1}, ({"a": [placeholder]},)):
        with pytest.raises(NotSerializable, match="Rename the key"):
            encode_event("e", (nested_one, b"a"))
    assert encode_event("e", ({"_placeholder": 1}, b"a"))[1] == (b"a",)


def test_a_placeholder_without_its_binary_part_stays_as_it_is():
    values = [{"_placeholder": True, "num": 1}, {"_placeholder": True, "num": -1}, {"_placeholder": True, "num": 0}]
    assert with_binary(values, (b"a",)) == [*values[:2], b"a"]
    odd = [{"_placeholder": True}, {"_placeholder": True, "num": "0"}, {"_placeholder": 1, "num": 0}, "text", None]
    assert with_binary(odd, (b"a",)) == odd
    assert with_binary(values, ()) is values


def nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


def test_a_value_may_be_nested_up_to_the_limit():
    check_depth(nested(MAX_DEPTH - 1), "session")
    with pytest.raises(NotSerializable, match=f"session: nested more than {MAX_DEPTH} deep"):
        check_depth(nested(MAX_DEPTH), "session")


def test_the_levels_of_a_value():
    assert list(levels({"a": [1, {"b": 2}], "c": (3,)}, "session")) == [
        [{"a": [1, {"b": 2}], "c": (3,)}],
        [[1, {"b": 2}], (3,)],
        [1, {"b": 2}, 3],
        [2],
    ]
