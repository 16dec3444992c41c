"""The commands of `stages`."""
