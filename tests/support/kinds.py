"""What of tests/acceptance does not run with synchronous nodes, and why.

Tests that take `cluster`, `make_cluster` or `kind` run with the kinds of nodes that `--kinds` names, of async, sync
and mixed. tests/acceptance/test_kinds.py compares these lists with the tests.
"""

from __future__ import annotations

ASYNC_ONLY = {
    "test_order::test_case_86_every_length_near_the_limit": "emits of several threads at once have no order",
    "test_order::test_case_87_many_emits_in_one_tick": "emits of several threads at once have no order",
}
"""Tests of nodes, as MODULE::TEST, that need an asynchronous one."""

WITHOUT_NODES = {
    "test_chat_history": "runs the application of docs/history.md, which is asynchronous",
    "test_client_of_node": "is about clients of the Node.js server",
    "test_demo": "runs the demo, whose servers are asynchronous",
    "test_demo_page": "runs the demo, whose servers are asynchronous",
    "test_examples": "runs the examples, which have servers of both kinds",
    "test_frameworks": "is about asynchronous frameworks; tests/integration has Flask and Django",
    "test_servers": "starts web servers of both kinds",
    "test_threads": "starts web servers of the synchronous kind alone",
    "test_tutorial": "runs the tutorial, which is asynchronous; examples/flask and examples/django have their tests",
    "test_workers": "is about workers of uvicorn; test_threads has workers of gunicorn",
}
"""Modules that start no nodes of tests/support/node_program.py."""
