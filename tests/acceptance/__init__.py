"""Acceptance tests: server processes, the real JavaScript clients, and frames written by hand."""
