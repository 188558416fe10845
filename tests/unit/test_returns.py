from __future__ import annotations

from sio_pg_adapter.local.returns import MOST_RETURNS, Returns
from sio_pg_adapter.log.records import Held


def come_back(returns: Returns, times: int, after: int = 7, first: int = 1) -> None:
    for generation in range(first, first + times):
        returns.sent(Held(1, generation), after)


def test_each_connection_counts_once():
    returns = Returns()
    for _ in range(100):
        returns.sent(Held(1, 1), 7)
    assert not returns.are_over(1, 7)
    come_back(returns, MOST_RETURNS - 2, first=2)
    assert not returns.are_over(1, 7)
    come_back(returns, 1, first=MOST_RETURNS)
    assert returns.are_over(1, 7)


def test_another_session_or_offset_is_not_over():
    returns = Returns()
    come_back(returns, MOST_RETURNS)
    assert not returns.are_over(2, 7) and not returns.are_over(1, 8)


def test_an_offset_that_moves_begins_again():
    returns = Returns()
    come_back(returns, MOST_RETURNS - 1)
    returns.sent(Held(1, 50), 8)
    come_back(returns, MOST_RETURNS - 1, first=60)
    assert not returns.are_over(1, 7)


def test_the_oldest_sessions_are_forgotten(monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.local.returns._SESSIONS", 2)
    returns = Returns()
    come_back(returns, MOST_RETURNS)
    returns.sent(Held(2, 1), 7)
    returns.sent(Held(3, 1), 7)
    assert not returns.are_over(1, 7)
