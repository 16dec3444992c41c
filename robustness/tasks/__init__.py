"""Benchmarks of lm-eval under every schedule of a sweep."""
