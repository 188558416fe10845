"""Offsets on the wire: each is valid for one number, one namespace and one epoch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sio_pg_adapter.log import offsets as module
from sio_pg_adapter.log.offsets import EPOCH_BITS, Epoch, OffsetCodec

CODEC = OffsetCodec([Epoch(0, b"k" * 32)])

namespaces = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(lambda text: "/" + text)
offsets = st.integers(0, (1 << EPOCH_BITS) - 1)


@given(offsets, namespaces)
def test_an_offset_is_22_characters_and_comes_back(offset, namespace):
    text = CODEC.encode(offset, namespace)
    assert len(text) == 22 and text.replace("-", "").replace("_", "").isalnum()
    assert CODEC.decode(text, namespace) == offset


@given(offsets, namespaces, namespaces)
def test_case_52_an_offset_belongs_to_its_namespace(offset, namespace, other):
    assert (CODEC.decode(CODEC.encode(offset, namespace), other) is None) == (namespace != other)


@given(offsets, st.integers(0, 21), st.characters())
def test_case_55_one_character_changed_is_not_the_offset(offset, at, character):
    text = CODEC.encode(offset, "/")
    changed = text[:at] + character + text[at + 1 :]
    assert CODEC.decode(changed, "/") == (offset if changed == text else None)


@given(st.text())
def test_case_97_no_text_is_more_than_no_offset(text):
    assert CODEC.decode(text, "/") is None


@given(offsets)
def test_an_offset_of_another_epoch_is_none_here(offset):
    assert CODEC.decode(OffsetCodec([Epoch(0, b"l" * 32)]).encode(offset, "/"), "/") is None


def test_an_epoch_counts_up_to_its_end():
    first, second = Epoch(0, b"k" * 32, end=100), Epoch(1, b"l" * 32)
    codec = OffsetCodec([first, second])
    at = (1 << EPOCH_BITS) + 5
    assert codec.decode(CODEC.encode(100, "/"), "/") == 100
    assert codec.decode(CODEC.encode(101, "/"), "/") is None  # issued, and lost in a crash
    assert codec.decode(codec.encode(at, "/"), "/") == at
    assert CODEC.decode(codec.encode(at, "/"), "/") is None


def test_only_offsets_of_known_epochs_are_known():
    codec = OffsetCodec([Epoch(1, b"k" * 32)])
    assert [codec.knows(offset) for offset in (0, 1 << EPOCH_BITS, 2 << EPOCH_BITS)] == [False, True, False]


@pytest.mark.parametrize(
    ("later", "continued"),
    [
        ([Epoch(0, b"k" * 32)], True),
        ([Epoch(0, b"k" * 32, end=100), Epoch(1, b"l" * 32)], True),
        ([Epoch(0, b"k" * 32, end=99), Epoch(1, b"l" * 32)], False),  # it was lost in a crash
        ([Epoch(0, b"l" * 32)], False),  # the same numbers of a restored log
        ([Epoch(1, b"k" * 32)], False),
        ([], False),
    ],
)
def test_an_offset_stays_valid_while_its_epoch_reaches_up_to_it(later, continued):
    assert CODEC.continued_by(OffsetCodec(later), 100) is continued


def test_an_offset_of_an_unknown_epoch_is_not_continued():
    assert not OffsetCodec([]).continued_by(CODEC, 100)


@pytest.mark.parametrize(
    ("ends", "last"),
    [([], 0), ([None], 0), ([100, None], 100), ([100, (1 << EPOCH_BITS) + 5, None], (1 << EPOCH_BITS) + 5)],
)
def test_the_last_end_is_that_of_the_epoch_before_the_running_one(ends, last):
    assert OffsetCodec(Epoch(number, b"k" * 32, end) for number, end in enumerate(ends)).last_end == last


def test_a_codec_keeps_few_digests_and_encodes_other_namespaces_all_the_same(monkeypatch):
    monkeypatch.setattr(module, "_CACHED_DIGESTS", 2)
    codec = OffsetCodec([Epoch(0, b"k" * 32)])
    for namespace in ("/a", "/b", "/c", "/a", "/c"):
        assert codec.encode(7, namespace) == CODEC.encode(7, namespace)
    assert codec._digests.keys() == {(0, "/a"), (0, "/b")}
