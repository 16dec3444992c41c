"""Models: opening and checking them, their parts, weights and checkpoints."""
