"""Benchmark tasks of lm-eval under schedules."""

from robustness.tasks.comparison import compare
from robustness.tasks.evaluation import evaluate_tasks
from robustness.tasks.preparation import prepare_tasks
from robustness.tasks.settings import TaskSettings

__all__ = ["TaskSettings", "compare", "evaluate_tasks", "prepare_tasks"]
