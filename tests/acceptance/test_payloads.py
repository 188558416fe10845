"""Case 45: a payload arrives exactly, live and replayed, or is refused before it is stored or sent."""

from __future__ import annotations

import datetime as dt
import json
import math

import pytest

from support.cluster import Cluster
from support.node_process import ControlError
from support.raw_client import Frame, RawClient

KINDS = ("async", "sync")
EXACT = {
    "empty text": "",
    "none": None,
    "NUL": "a\u0000b",
    "NUL in a key": {"\u0000": 1},
    "emoji": "\U0001f469\u200d\U0001f680 é \u2028 \uffff",
    "2**53+1": 2**53 + 1,
    "400 digits": 10**399 + 1,
    "floats": [0.1, -0.0, 1e308, 5e-324, 1e16],
    "order of keys": {"z": 1, "a": {"y": 1, "b": 2}},
    "nesting": [[[[[{"a": [[[]]]}]]]]],
    "quotes": "\"'\\ $1 %s :name {0} \x01\x1e",
    "like an offset": ["not an offset"],
    "50 MB": "x" * 50_000_000,
}
NEVER = {
    "NaN": math.nan,
    "infinity": [1, -math.inf],
    "datetime": {"at": dt.datetime(2024, 1, 1, tzinfo=dt.UTC)},
}
EITHER = {"lone surrogate": "a\ud800b"}


async def deliver(cluster: Cluster, room: str, data: object) -> tuple[list[Frame], ControlError | None]:
    """Emit on node b to a client of node a; a replay must give what it got live."""
    async with RawClient(cluster.a.url) as c:
        sid, pid = await c.open_namespace(rooms=[room])
        await cluster.mark(room, "begin")
        _, offset = await c.event()
        refused = None
        try:
            await cluster.b.emit("e", data, room=room)
        except ControlError as error:
            refused = error
        await cluster.mark(room)
        live = await c.recv_until_event("end")
    async with RawClient(cluster.b.url) as c:
        assert await c.open_namespace(pid=pid, offset=offset) == (sid, pid)
        assert await c.recv_until_event("end") == live
    return live, refused


def sent_once(live: list[Frame], args: list) -> bool:
    assert len(live) == 1
    text = json.dumps(json.loads(str(live[0])[1:])[:-1])
    return text == json.dumps(["e", *args])  # text, so that -0.0 is not 0.0 and keys keep their order


@pytest.mark.parametrize("name", EXACT)
async def test_case_45_exact(cluster, room, name):
    data = EXACT[name]
    live, refused = await deliver(cluster, room, data)
    assert refused is None
    assert sent_once(live, [] if data is None else [data])


@pytest.mark.parametrize("name", NEVER)
async def test_case_45_refused(cluster, room, name):
    live, refused = await deliver(cluster, room, NEVER[name])
    assert refused is not None and "SioPgError" in refused.kinds
    assert live == []


@pytest.mark.parametrize("name", EITHER)
async def test_case_45_exact_or_refused(cluster, room, name):
    live, refused = await deliver(cluster, room, EITHER[name])
    if refused is None:
        assert sent_once(live, [EITHER[name]])
    else:
        assert "SioPgError" in refused.kinds
        assert live == []


@pytest.mark.parametrize(
    "data",
    [
        pytest.param({"a": [b"", b"\x00\xff"], "b": {"c": b"c" * 9000}}, id="nested"),
        pytest.param((bytearray(b"array"), [b"bytes"]), id="bytearray"),
        pytest.param(b"\x00" * 20_000_000, id="20 MB"),
    ],
)
async def test_case_45_binary(cluster, room, data):
    live, refused = await deliver(cluster, room, data)
    assert refused is None
    head, *attachments = live
    found: list[bytes] = []

    def collect(value: object) -> None:
        match value:
            case bytes() | bytearray():
                found.append(bytes(value))
            case dict():
                collect(list(value.values()))
            case list() | tuple():
                for item in value:
                    collect(item)

    collect(data)
    assert str(head).startswith(f'5{len(found)}-["e",')
    assert attachments == found
