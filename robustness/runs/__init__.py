"""Runs: batches of text, memory, and traffic to a server."""
