"""The experiments of the paper, a file each."""

__all__: list[str] = []
