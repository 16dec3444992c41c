"""Ranges of the values that variables of files may hold."""

ROUNDING = 1e-3
"""Distance by which rounding may take a share beyond 0 or 1, or a variance below 0."""

SHARE = (-ROUNDING, 1 + ROUNDING)
"""Range of a share."""

ATTENTION_WEIGHT = (-ROUNDING, 1.05)
"""Range of attention weights, whose sum exceeds 1 a little in half precision."""
