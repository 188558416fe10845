"""Handovers: the announcement may come before or after somebody waits for it."""

from __future__ import annotations

import asyncio

from sio_pg_adapter.local.handover import REMEMBERED, Handover


async def test_an_announcement_reaches_a_claim_that_waits_and_one_that_comes_later():
    handover = Handover()
    waiting = asyncio.create_task(handover.of(1, 2).wait())
    await asyncio.sleep(0)
    handover.of(1, 2).set()
    assert await waiting
    assert handover.of(1, 2).is_set()


async def test_another_generation_or_session_has_not_let_go():
    handover = Handover()
    handover.of(1, 2).set()
    assert not handover.of(1, 3).is_set() and not handover.of(2, 2).is_set()


async def test_a_handover_that_is_forgotten_begins_again():
    handover = Handover()
    handover.of(1, 2).set()
    handover.forget(1, 2)
    handover.forget(1, 2)
    assert not handover.of(1, 2).is_set()


async def test_the_oldest_handover_is_dropped_when_there_are_too_many():
    handover = Handover()
    for session in range(REMEMBERED + 1):
        handover.of(session, 1).set()
    assert handover.of(REMEMBERED, 1).is_set() and handover.of(1, 1).is_set()
    assert not handover.of(0, 1).is_set()
