"""Healing without training: what is put in the place of removed blocks, fitted in one pass."""
