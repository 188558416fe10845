"""Reports of faults to the application: once when the database is away, and once when it is back."""

from __future__ import annotations

import asyncio

from sio_pg_adapter.errors import StoreUnavailable
from sio_pg_adapter.local.health import FaultReports
from sio_pg_adapter.tasks import Tasks


async def reported(handler, *faults):
    tasks = Tasks()
    reports = FaultReports(handler, tasks)
    for fault in faults:
        reports.report(fault)
        await asyncio.sleep(0)
    await tasks.close()


async def test_a_fault_and_its_end_are_reported_once_each():
    seen = []
    await reported(seen.append, "", "LISTEN: gone", "writer: gone, too", "", "", "reader: gone")
    assert [error and str(error) for error in seen] == ["LISTEN: gone", None, "reader: gone"]
    assert isinstance(seen[0], StoreUnavailable) and not seen[0].may_be_stored


async def test_a_handler_may_be_async():
    seen = []

    async def handler(error):
        seen.append(error)

    await reported(handler, "gone", "")
    assert len(seen) == 2


async def test_a_handler_that_fails_is_logged_and_called_again(caplog):
    calls = []

    def handler(error):
        calls.append(error)
        raise ValueError("broken")

    await reported(handler, "gone", "")
    assert len(calls) == 2 and caplog.text.count("the error_handler failed") == 2


async def test_without_a_handler_nothing_is_reported():
    await reported(None, "gone", "")
