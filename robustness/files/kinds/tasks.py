"""Kinds of files of benchmark tasks."""

import math

from robustness.files.ranges import SHARE
from robustness.files.schema import LAYERS, TEXT, Kind, Variable, number_labels, text_labels

TASK_DIMS = ("task", "metric")

CLEAN_VARIABLES = {
    "clean_value": Variable(TASK_DIMS),
    "clean_standard_error": Variable(TASK_DIMS, "f", 0),
    "clean_correct": Variable(("metric", "item"), "f", *SHARE),
    "loglikelihood": Variable(("run", "request"), "f", -math.inf, 0.1),
    "greedy": Variable(("run", "request"), "i", 0, 1),
    "written": Variable(("run", "place", "prompt"), "i", -1),
}
"""Variables of the clean model, and those of an unfinished run."""

TASK_LABELS = {
    **text_labels(*TASK_DIMS),
    **number_labels(0, "item"),
    **number_labels(0, "run", "request", "prompt", "place", ascending=False),
    "item_task": Variable(("item",), "U"),
    "item_index": Variable(("item",), "i", 0),
}

TASK_ATTRIBUTES = dict.fromkeys(("tasks", "task_data", "lm_eval"), TEXT)

NEEDED = ("value", "standard_error", "clean_value", "clean_standard_error", "correct")

TASKS = {
    "tasks": Kind(
        {
            "value": Variable((*TASK_DIMS, "intervention", "layer")),
            "standard_error": Variable((*TASK_DIMS, "intervention", "layer"), "f", 0),
            "correct": Variable(("metric", "intervention", "layer", "item"), "f", *SHARE),
            **CLEAN_VARIABLES,
        },
        {
            **LAYERS,
            **text_labels("intervention"),
            "schedule": Variable(("intervention", "layer"), "U"),
            **TASK_LABELS,
        },
        needed=NEEDED,
        attrs=TASK_ATTRIBUTES | {"interventions": TEXT},
    ),
    "tasks-schedules": Kind(
        {
            "value": Variable((*TASK_DIMS, "schedule")),
            "standard_error": Variable((*TASK_DIMS, "schedule"), "f", 0),
            "correct": Variable(("metric", "schedule", "item"), "f", *SHARE),
            **CLEAN_VARIABLES,
        },
        {**text_labels("schedule"), **TASK_LABELS},
        needed=NEEDED,
        attrs=TASK_ATTRIBUTES | {"schedules": TEXT},
    ),
    "tasks-clean": Kind(
        CLEAN_VARIABLES,
        TASK_LABELS,
        needed=("clean_value", "clean_standard_error", "clean_correct"),
        attrs=TASK_ATTRIBUTES,
    ),
}
