"""Verdicts on the paper's claims, and comparisons of several models."""
