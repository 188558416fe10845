"""Which errors leave the outcome of a commit open."""

from __future__ import annotations

import asyncpg
import pytest

from sio_pg_adapter.store.failures import refusal, unknown_outcome


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.AdminShutdownError("terminating connection due to administrator command"),
        asyncpg.QueryCanceledError("canceling statement"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.InterfaceError("the connection is closed"),
        asyncpg.InternalClientError("unexpected message"),
        ConnectionResetError("reset by peer"),
        TimeoutError(),
    ],
)
def test_an_error_of_the_connection_leaves_the_outcome_open(error):
    unknown = unknown_outcome(error)
    assert unknown is not None and type(error).__name__ in str(unknown)


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.UniqueViolationError("duplicate key"),
        asyncpg.DataError("invalid input"),
        asyncpg.ReadOnlySQLTransactionError("cannot execute INSERT in a read-only transaction"),
        asyncpg.SerializationError("could not serialize access"),
        asyncpg.UndefinedTableError("relation does not exist"),
        ValueError("of this package"),
    ],
)
def test_an_answer_of_the_server_means_that_nothing_was_done(error):
    assert unknown_outcome(error) is None


@pytest.mark.parametrize(
    ("missing", "advised"), [("table sio_log", True), ("function sio_emit", True), ("database app", False)]
)
def test_a_role_without_rights_is_told_which_it_needs(missing, advised):
    refused = refusal("appending", asyncpg.InsufficientPrivilegeError(f"permission denied for {missing}"))
    assert ("rights of a node, see Roles" in str(refused)) is advised
    assert f"permission denied for {missing}" in str(refused)
