"""Benchmark tasks of lm-eval under schedules."""

from robustness.tasks.evaluation import evaluate_tasks
from robustness.tasks.preparation import prepare_tasks
from robustness.tasks.settings import TaskSettings

__all__ = ["TaskSettings", "evaluate_tasks", "prepare_tasks"]
