"""Positions: each is valid for one number, one namespace and one epoch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sio_pg_adapter import ConfigurationError, PositionLost
from sio_pg_adapter.log.offsets import EPOCH_BITS, Epoch, OffsetCodec
from sio_pg_adapter.log.positions import decode_position, encode_position

CODEC = OffsetCodec([Epoch(0, b"k" * 32, end=1_000), Epoch(1, b"l" * 32)])

namespaces = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(lambda text: "/" + text)
offsets = st.integers(0, 1_000) | st.integers(1 << EPOCH_BITS, (2 << EPOCH_BITS) - 1)


def decode(text: object, namespace: str = "/", codec: OffsetCodec = CODEC) -> int:
    return decode_position(text, namespace, codec, argument="since")


@given(offsets, namespaces)
def test_a_position_is_36_characters_and_comes_back(offset, namespace):
    text = encode_position(offset, namespace, CODEC)
    assert len(text) == 36 and text.replace("-", "").replace("_", "").isalnum()
    assert decode(text, namespace) == offset


@given(offsets, namespaces, namespaces)
def test_a_position_belongs_to_its_namespace(offset, namespace, other):
    text = encode_position(offset, namespace, CODEC)
    if namespace != other:
        with pytest.raises(ConfigurationError, match="since has a position of another namespace"):
            decode(text, other)


@given(offsets, st.integers(0, 35), st.characters())
def test_one_character_changed_is_not_the_position(offset, at, character):
    text = encode_position(offset, "/", CODEC)
    changed = text[:at] + character + text[at + 1 :]
    if changed != text:
        with pytest.raises((ConfigurationError, PositionLost)):
            decode(changed)


@given(st.text() | st.integers() | st.binary())
def test_no_other_value_is_a_position(value):
    with pytest.raises(ConfigurationError, match="since takes a position"):
        decode(value)


def test_an_offset_on_the_wire_is_not_a_position():
    with pytest.raises(ConfigurationError, match="since takes a position"):
        decode(CODEC.encode(7, "/"))
    assert CODEC.decode(encode_position(7, "/", CODEC), "/") is None


def test_a_position_of_an_epoch_that_the_log_does_not_have_is_lost():
    text = encode_position(7, "/", CODEC)
    for other in (OffsetCodec([Epoch(0, b"another key" * 3)]), OffsetCodec([Epoch(1, b"k" * 32)])):
        with pytest.raises(PositionLost, match="an epoch that this log does not have"):
            decode(text, codec=other)


def test_a_position_above_the_end_of_its_epoch_is_lost():
    text = encode_position(1_001, "/", OffsetCodec([Epoch(0, b"k" * 32)]))
    with pytest.raises(PositionLost, match="was lost in a crash"):
        decode(text)


@pytest.mark.parametrize(
    ("value", "shown"), [("x" * 81, f"not '{'x' * 80}'$"), (7, "not a value of type int$"), (b"x", "type bytes$")]
)
def test_a_message_shows_the_beginning_of_a_text_and_no_other_value(value, shown):
    with pytest.raises(ConfigurationError, match=shown):
        decode(value)
