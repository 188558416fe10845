"""Changes of all members of rooms, positions and retention at once. The database agrees with the model."""

from __future__ import annotations

import json
import random

import pytest

from integration.test_floors import ROOMS, Model
from sio_pg_adapter.log.memberships import Memberships
from sio_pg_adapter.log.names import EVERYBODY
from sio_pg_adapter.log.offsets import EPOCH_BITS
from sio_pg_adapter.log.records import Kind, Record

CALLS = {Kind.MEMBERS_ENTER: "enter_room", Kind.MEMBERS_LEAVE: "leave_room", Kind.MEMBERS_KICK: "disconnect"}


class MembersModel(Model):
    """The model of retention, with changes of members, and sessions whose node is behind when they are stored."""

    def __init__(self, store, db, pg_dsn: str, chance: random.Random) -> None:
        super().__init__(store, db, pg_dsn, chance)
        self._opened: list[str] = []

    async def step(self) -> None:
        if self._chance.random() < 0.65:
            await super().step()
            return
        kind = self._chance.choices(list(CALLS), [8, 8, 1])[0]
        members = tuple(self._chance.sample([*ROOMS, *self._ids, EVERYBODY], self._chance.choice([1, 1, 2])))
        targets = tuple(self._chance.sample(ROOMS, self._chance.choice([1, 1, 2])))
        if kind is Kind.MEMBERS_KICK:
            members, targets = (self._chance.choice(ROOMS),), (EVERYBODY,)
        next_one = f"s{len(self._opened)}"  # it may be opened as of an earlier offset
        skip = tuple(self._chance.sample([*self._ids, next_one], self._chance.choice([0, 0, 1])))
        rooms = None if kind is Kind.MEMBERS_KICK else json.dumps(targets)
        muted = tuple(self._chance.sample([*ROOMS, *self._ids, next_one], self._chance.choice([0, 0, 1])))
        change = "SELECT sio_change($1, '/', $2, NULL, $3, $4, $5)"
        named = (json.dumps(names) for names in (members, skip, muted))
        await self._db.execute(change, CALLS[kind], rooms, *named)
        record = Record(await self._store.reader.head(), kind, "/", targets, skip, muted, members)
        if kind is Kind.MEMBERS_KICK:
            for sid in [sid for sid, rooms_of in self._rooms.items() if rooms_of.concerns(record)]:
                del self._rooms[sid], self._ids[sid]
        self._records.append(record)
        for memberships in self._rooms.values():
            memberships.apply(record)
        if not self._ids:
            await self.open_behind()

    async def open_behind(self) -> None:
        """Open sessions with the rooms that their node knew at an earlier offset, until one was not kicked since."""
        floor = max(await self._db.fetchval("SELECT floor FROM sio_log"), 1 << EPOCH_BITS)
        later = [record.offset for record in self._records if record.offset >= floor][-8:]
        cursor = self._chance.choice(later or [await self._store.reader.head()])
        key = await self._db.fetchval(
            "SELECT encode(key, 'hex') FROM sio_epochs WHERE epoch = $1", cursor >> EPOCH_BITS
        )
        while True:
            sid = f"s{len(self._opened)}"
            self._opened.append(sid)
            memberships, since = Memberships(sid, cursor), max(cursor - 5, floor)
            for room in self._chance.sample(ROOMS, self._chance.randrange(3)):
                memberships.enter(room, cursor)
            memberships.enter_since("a", since)
            held = await self._store.sessions.open(
                "/", memberships, pid=sid, cursor=cursor, data="{}", since={(since, key)}
            )
            kicked = False
            for record in self._records:
                if record.offset > cursor:
                    kicked |= record.kind is Kind.MEMBERS_KICK and memberships.concerns(record)
                    memberships.apply(record)
            assert (held is None) is kicked
            if held is not None:
                self._rooms[sid], self._ids[sid] = memberships, held.id
                return
            cursor = await self._store.reader.head()

    async def check(self) -> None:
        await super().check()
        floor = await self._db.fetchval("SELECT floor FROM sio_log")
        for sid, memberships in self._rooms.items():
            rows = await self._db.fetch("SELECT sio_due($1, $2, 1000) AS at", self._ids[sid], memberships.start)
            due = [record.offset for record in self._records if record.offset > floor and memberships.due(record)]
            assert [row["at"] for row in rows] == due, (sid, floor)
            assert set(await self._store.sessions.rooms("/", sid)) == set(memberships.current())


@pytest.mark.parametrize("seed", range(6))
async def test_members_are_those_of_the_model_whatever_happens_at_once(store, db, pg_dsn, seed):
    model = MembersModel(store, db, pg_dsn, random.Random(seed))
    await store.emit()  # offsets begin with the epoch
    for i in range(14):
        if i < 6:
            await model.open_behind()
        for _ in range(8):
            await model.step()
        if i % 2:
            await model.expire()
        await model.check()
