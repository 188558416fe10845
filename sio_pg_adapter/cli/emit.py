"""``sio-pg emit``: send an event to clients, stored like an event of a server."""

from __future__ import annotations

import argparse
import asyncio
import json
import uuid
from typing import Any, NoReturn

from sio_pg_adapter.counters import Counters
from sio_pg_adapter.log.names import EVERYBODY, key_name, text_name, text_names
from sio_pg_adapter.log.payload import encode_client_event
from sio_pg_adapter.log.records import Entry, Kind, Written
from sio_pg_adapter.store.writer import LogWriter

from . import terminal
from .connect import open_database


def main(args: argparse.Namespace) -> int:
    """Check the arguments, store the event, and print its offset."""
    data = tuple(_argument(args, number, text) for number, text in enumerate(args.data, 1))
    body, _ = encode_client_event(args.event, data)
    key = key_name(args.key)
    entry = Entry(
        Kind.EVENT,
        text_name(args.namespace, "--namespace"),
        text_names(args.room, "room") or (EVERYBODY,),
        text_names(args.skip_sid, "--skip-sid"),
        text_names(args.skip_room, "--skip-room"),
        body=body,
        args={} if key is None else {"key": key},
    )
    written = asyncio.run(_append(args, entry))
    if args.json:
        terminal.print_json({"offset": written.offset, **({} if key is None else {"stored": not written.duplicate})})
    elif written.duplicate:
        print(f"not stored: the event at offset {written.offset} has the same key")
    else:
        print(f"stored at offset {written.offset}")
    return 0


def _argument(args: argparse.Namespace, number: int, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        hint = "" if text[:1] in '[{"' else ". Write text in quotes, as in '\"text\"'"
        args.parser.error(f"argument {number} of the event is not JSON: {e}{hint}")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is JavaScript, not JSON")


async def _append(args: argparse.Namespace, entry: Entry) -> Written:
    async with open_database(args) as database:
        head = await database.fetch_value("head")
        log = LogWriter(database, lambda *_: None, lambda: None, uuid.uuid4().hex, Counters(), lambda: head)
        log.start()
        try:
            return await log.append(entry)
        finally:
            await log.close()
