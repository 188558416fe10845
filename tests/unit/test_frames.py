"""Events as frames: heads, attachments, and which last argument is not the application's."""

from __future__ import annotations

import pytest
from socketio.msgpack_packet import MsgPackPacket
from socketio.packet import Packet

from sio_pg_adapter.log.records import Kind, Outgoing, Record
from sio_pg_adapter.wire.frames import FrameMaker

JSON = FrameMaker(Packet)


def event(body, parts=(), namespace="/"):
    return Outgoing(namespace, ("",), (), body, parts)


def texts(frames):
    return [frame.encode() if frame.encode()[0:1] == "4" else frame.data for frame in frames]


@pytest.mark.parametrize(
    ("namespace", "body", "options", "text"),
    [
        ("/", '["e"]', {}, '42["e"]'),
        ("/", '["e"]', {"tail": '"o"'}, '42["e","o"]'),
        ("/", '["e",1]', {"tail": "null"}, '42["e",1,null]'),
        ("/", '["e",1] ', {"tail": '"o"'}, '42["e",1,"o"]'),
        ("/ns", '["e"]', {"tail": '"o"'}, '42/ns,["e","o"]'),
        ("/", '["e"]', {"ack_id": 17}, '4217["e"]'),
        ("/ns", '["e"]', {"ack_id": 0}, '42/ns,0["e"]'),
    ],
)
def test_cases_3_4_6_an_event_is_one_frame(namespace, body, options, text):
    assert texts(JSON.event(event(body, namespace=namespace), **options)) == [text]


def test_case_5_attachments_are_right_behind_their_head():
    body = '["e",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]'
    frames = JSON.event(event(body, (b"a", b"b"), "/ns"), tail='"o"')
    assert frames[0].encode() == "452-/ns," + body[:-1] + ',"o"]'
    assert [frame.data for frame in frames[1:]] == [b"a", b"b"]
    assert all(frame.binary for frame in frames[1:])


def test_the_frames_of_a_record_with_an_offset_and_without():
    record = Record(7, Kind.EVENT, "/", body='["e",1]')
    assert texts(JSON.stored(record, "OFFSET")) == ['42["e",1,"OFFSET"]']
    assert texts(JSON.stored(record, None)) == ['42["e",1]']  # case 17


@pytest.mark.parametrize(
    ("body", "tail"),
    [
        ('["tick"]', "null"),  # its own name would be taken for an offset
        ('["v","world"]', "null"),
        ('["v",""]', "null"),
        ('["v", "world" ] ', "null"),
        ('["v",null]', "null"),
        ('["v", null]', "null"),
        ('["v",1]', None),
        ('["v",true]', None),
        ('["v",{"a":"b"}]', None),
        ('["v",["b"]]', None),
        ('["v",[null]]', None),
        ('["v","a",{}]', None),
    ],
)
def test_case_7_an_unstored_event_ends_in_no_string(body, tail):
    (text,) = texts(JSON.unstored(event(body)))
    assert text == (f"42{body}" if tail is None else f"42{body.rstrip()[:-1]},{tail}]")


def test_case_13_another_serializer_gets_the_values():
    frames = FrameMaker(MsgPackPacket).event(event('["e",{"_placeholder":true,"num":0}]', (b"a",)), tail='"o"')
    (frame,) = frames
    packet = MsgPackPacket(encoded_packet=frame.data)
    assert packet.data == ["e", b"a", "o"]
