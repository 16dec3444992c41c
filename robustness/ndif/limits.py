"""Limits of what passes between this machine and a server, unless a user sets others."""

SANDBOX_LIMIT = 50.0
"""Gigabytes that a run may pass through the socket of a sandboxed server."""

ANSWER_LIMIT = 4.0
"""Gigabytes that a trace of the user's own may hand back."""
