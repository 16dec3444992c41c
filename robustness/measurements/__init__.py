"""Measurements of the clean run, layer by layer."""
