"""The rate at which a pid may claim: a burst, then so many in a second, each pid for itself."""

from __future__ import annotations

import asyncio

import pytest

from sio_pg_adapter.server import rate_limit as module
from sio_pg_adapter.server.rate_limit import BURST, PER_SECOND, RateLimit


def exhausted(now: float = 0.0) -> RateLimit:
    limit = RateLimit()
    assert {limit.delay("p", now) for _ in range(BURST)} == {0.0}
    return limit


def test_claims_beyond_the_burst_wait_for_their_turn():
    limit = exhausted()
    assert [limit.delay("p", 0.0) for _ in range(3)] == pytest.approx([n / PER_SECOND for n in (1, 2, 3)])


def test_tokens_come_back_with_the_time():
    limit = exhausted()
    limit.delay("p", 0.0)
    assert limit.delay("p", 2 / PER_SECOND) == 0.0
    assert limit.delay("p", 2 / PER_SECOND) == pytest.approx(1 / PER_SECOND)


def test_a_quiet_pid_has_no_more_than_a_burst():
    limit = exhausted()
    assert {limit.delay("p", 1e6) for _ in range(BURST)} == {0.0}
    assert limit.delay("p", 1e6) > 0


def test_a_pid_does_not_wait_for_another():
    limit = exhausted()
    assert limit.delay("p", 0.0) > 0 and limit.delay("other", 0.0) == 0.0


def test_the_pid_that_was_claimed_longest_ago_is_forgotten_first(monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 2)
    limit = exhausted()
    limit.delay("second", 0.0)
    limit.delay("p", 0.0)  # later than the second
    limit.delay("third", 0.0)
    assert limit.delay("p", 0.0) > 0
    limit.delay("fourth", 0.0)
    limit.delay("fifth", 0.0)
    assert limit.delay("p", 0.0) == 0.0


def test_no_pid_is_kept_in_memory():
    limit = RateLimit()
    limit.delay("secret", 0.0)
    assert "secret" not in repr(vars(limit))


async def test_only_a_claim_without_a_token_waits(monkeypatch):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(module.time, "monotonic", lambda: 5.0)
    limit = RateLimit()
    for _ in range(BURST):
        await limit.wait("p")
    assert waits == []
    await limit.wait("p")
    assert waits == pytest.approx([1 / PER_SECOND])
