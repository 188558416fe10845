"""The clients that were asked, and their answers. Messages may arrive in another order than nodes sent them."""

from sio_pg_adapter.cluster.broadcast_calls import ClientAnswers


def test_answers_that_come_before_it_is_known_who_was_asked():
    """A long list of sids goes through a table, and a short answer behind it does not: it comes first."""
    answers = ClientAnswers()
    answers.nodes.add("n")
    answers.take("n", {"answers": [["a", [1]], ["b", [2, 3]]], "gone": ["c"]})
    assert answers.owing() == {"n"}
    answers.take("n", {"asked": ["a", "b", "c", "d"]})
    assert answers.owing() == {"n"} and answers.silent_clients() == ["c", "d"]
    answers.take("n", {"answers": [["d", []]]})
    assert answers.owing() == set() and answers.silent_clients() == ["c"]
    assert answers.values == {"a": 1, "b": (2, 3), "d": None}
