"""The log and the sessions in PostgreSQL. Only this package and ``migrate`` import asyncpg."""
