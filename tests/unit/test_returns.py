from __future__ import annotations

from sio_pg_adapter.local.returns import MOST_RETURNS, Returns


def break_off(returns: Returns, times: int, after: int = 7) -> None:
    for _ in range(times):
        returns.broke_off(1, after)


def test_a_session_may_come_back_several_times():
    returns = Returns()
    break_off(returns, MOST_RETURNS - 1)
    assert not returns.are_over(1, 7)
    break_off(returns, 1)
    assert returns.are_over(1, 7)


def test_another_session_or_offset_is_not_over():
    returns = Returns()
    break_off(returns, MOST_RETURNS)
    assert not returns.are_over(2, 7) and not returns.are_over(1, 8)


def test_an_offset_that_moves_begins_again():
    returns = Returns()
    break_off(returns, MOST_RETURNS - 1)
    break_off(returns, 1, after=8)
    break_off(returns, MOST_RETURNS - 1)
    assert not returns.are_over(1, 7)


def test_the_oldest_sessions_are_forgotten(monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.local.returns._SESSIONS", 2)
    returns = Returns()
    break_off(returns, MOST_RETURNS)
    returns.broke_off(2, 7)
    returns.broke_off(3, 7)
    assert not returns.are_over(1, 7)


def test_the_sessions_that_broke_off_last_are_remembered(monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.local.returns._SESSIONS", 2)
    returns = Returns()
    returns.broke_off(1, 7)
    returns.broke_off(2, 7)
    break_off(returns, MOST_RETURNS, after=8)
    returns.broke_off(3, 7)
    assert returns.are_over(1, 8)
