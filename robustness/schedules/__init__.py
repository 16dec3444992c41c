"""Schedules, their text, the interventions that make them, and plans: standard library alone."""
