"""The commands of `stages`."""

__all__: list[str] = []
