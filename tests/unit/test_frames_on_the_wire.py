"""An Engine.IO message as a frame of a websocket, read back by a parser that is not ours."""

import pytest
from websockets.frames import Opcode
from websockets.protocol import CLIENT, OPEN, Protocol

from sio_pg_adapter.wire.frames import framed


@pytest.mark.parametrize("size", [0, 1, 124, 125, 126, 65_534, 65_535, 65_536, 100_000])
@pytest.mark.parametrize("kind", [str, bytes])
def test_a_frame_is_read_as_it_was_meant(size, kind):
    data = ("ü" if size else "") + "x" * (size - 2) if kind is str else b"\x00" * size
    reader = Protocol(CLIENT, state=OPEN, max_size=None)
    reader.receive_data(framed(data).wire)
    (frame,) = reader.events_received()
    assert frame.fin and not frame.rsv1
    if kind is str:
        assert (frame.opcode, bytes(frame.data).decode()) == (Opcode.TEXT, "4" + data)
    else:
        assert (frame.opcode, bytes(frame.data)) == (Opcode.BINARY, data)


def test_a_binary_part_has_both_forms_whichever_is_asked_for_first():
    frame = framed(b"\x00\xff")
    assert frame.encode(b64=True) == "bAP8="
    assert frame.wire.endswith(b"\x00\xff")
    assert frame.encode() == b"\x00\xff"
