"""Who was asked and who has answered: what nodes tell may come in another order than they sent it."""

from sio_pg_adapter.cluster.broadcast_calls import Tally


def test_answers_that_come_before_it_is_known_who_was_asked():
    """A long list of sids goes through a table, and a short answer behind it does not: it comes first."""
    tally = Tally()
    tally.nodes.add("n")
    tally.take("n", {"answers": [["a", [1]], ["b", [2, 3]]], "gone": ["c"]})
    assert tally.owing() == {"n"}
    tally.take("n", {"asked": ["a", "b", "c", "d"]})
    assert tally.owing() == {"n"} and tally.missing() == ["c", "d"]
    tally.take("n", {"answers": [["d", []]]})
    assert tally.owing() == set() and tally.missing() == ["c"]
    assert tally.values == {"a": 1, "b": (2, 3), "d": None}
