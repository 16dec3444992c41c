"""What is done to a model, and what comes of it."""

__all__: list[str] = []
