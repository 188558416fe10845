"""An Engine.IO message as a frame of a websocket, read back by a parser that is not ours."""

import pytest
from websockets.frames import Opcode
from websockets.protocol import CLIENT, OPEN, Protocol

from sio_pg_adapter.wire.frames import frame


@pytest.mark.parametrize("size", [0, 1, 124, 125, 126, 65_534, 65_535, 65_536, 100_000])
@pytest.mark.parametrize("kind", [str, bytes])
def test_a_frame_is_read_as_it_was_meant(size, kind):
    data = ("ü" if size else "") + "x" * (size - 2) if kind is str else b"\x00" * size
    reader = Protocol(CLIENT, state=OPEN, max_size=None)
    reader.receive_data(frame(data).wire)
    (message,) = reader.events_received()
    assert message.fin and not message.rsv1
    if kind is str:
        assert (message.opcode, bytes(message.data).decode()) == (Opcode.TEXT, "4" + data)
    else:
        assert (message.opcode, bytes(message.data)) == (Opcode.BINARY, data)


def test_a_binary_part_has_both_forms_whichever_is_asked_for_first():
    part = frame(b"\x00\xff")
    assert part.encode(b64=True) == "bAP8="
    assert part.wire.endswith(b"\x00\xff")
    assert part.encode() == b"\x00\xff"
