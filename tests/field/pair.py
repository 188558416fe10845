"""``Pair``: a primary and its hot standby, which change places."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote

from field.servers import make_log, query, terminate
from support.replicas import REPLICATED, copy_into, prepared, shut_down
from support.roles import NODE


class Pair:
    """A primary and its standby, which change places.

    :ivar dsns: a DSN with each order of the hosts. So one of two nodes has the host first that falls silent.
    """

    def __init__(self, programs: Path) -> None:
        self.primary, self.standby = prepared(REPLICATED), prepared(REPLICATED)
        self._programs = programs
        hosts = [self.primary.host, self.standby.host]
        self.dsns = [self._dsn(hosts), self._dsn(hosts[::-1])]

    @staticmethod
    def _dsn(hosts: list[str]) -> str:
        at = f"host={quote(','.join(hosts), safe='')}&port=5432,5432"
        return f"postgresql://{NODE}@/app?{at}&target_session_attrs=primary&connect_timeout=1"

    async def start(self) -> None:
        await make_log(self.primary)
        await asyncio.to_thread(self.make_standby)

    def make_standby(self) -> None:
        copy_into(self.standby, self.primary, self._programs, standby=True)
        self.standby.start()

    def stop(self) -> None:
        for server in (self.primary, self.standby):
            server.stop()

    async def wait_for(self, synchronous: bool) -> None:
        """Wait until the standby follows. If synchronous, commits wait for it from then on."""
        name = "*" if synchronous else ""
        await query(self.primary.admin_dsn(), f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        await query(self.primary.admin_dsn(), "SELECT pg_reload_conf()")
        state = "sync" if synchronous else "async"
        async with asyncio.timeout(30):
            while [s for (s,) in await query(self.primary.admin_dsn(), "SELECT sync_state FROM pg_stat_replication"
                                             " WHERE state = 'streaming'")] != [state]:  # fmt: skip
                await asyncio.sleep(0.02)
        # The checkpointer makes commits wait, and not the sender. It reads its settings before a checkpoint.
        await query(self.primary.admin_dsn(), "CHECKPOINT")

    async def fall_behind(self) -> None:
        """The standby gets nothing more."""
        await query(self.standby.admin_dsn(), "ALTER SYSTEM SET primary_conninfo = ''")
        await query(self.standby.admin_dsn(), "SELECT pg_reload_conf()")
        async with asyncio.timeout(30):
            while await query(self.primary.admin_dsn(), "SELECT FROM pg_stat_replication"):
                await asyncio.sleep(0.02)

    async def promote(self) -> None:
        await query(self.standby.admin_dsn(), "ALTER SYSTEM SET synchronous_standby_names = ''")
        await query(self.standby.admin_dsn(), "SELECT pg_promote()")
        self.primary, self.standby = self.standby, self.primary

    async def rejoin(self) -> None:
        """Make the old primary, which runs, a standby of the new one."""
        await query(self.standby.admin_dsn(), "ALTER SYSTEM SET synchronous_standby_names = ''")
        await query(self.standby.admin_dsn(), "SELECT pg_reload_conf()")
        await terminate(self.standby)
        await asyncio.to_thread(shut_down, self.standby)
        await asyncio.to_thread(self.make_standby)
