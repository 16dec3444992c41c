"""Sweeps: schedules prepared, executed and compared with the clean run."""
