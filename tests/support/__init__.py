"""Test helpers that are not fixtures: clients, nodes, servers, and ways to wait.

Tests import from here, never from a conftest. The first line of each module names what it offers.
"""
