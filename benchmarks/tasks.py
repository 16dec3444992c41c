"""Times tasks under drop and swap: one run of ours, and the harness once a schedule.

    python benchmarks/tasks.py MODEL TASK_DATA [--limit 200] [TASK]…

Both run in this process, on the same items, with equal batch sizes where the harness has one. The
harness evaluates plain transformers models whose module list is the schedule.
"""

import argparse
import copy
import time

import torch
from torch.nn import ModuleList
from transformers import AutoModelForCausalLM, AutoTokenizer

from robustness.models.opening import open_model
from robustness.schedules import clean
from robustness.schedules.interventions import schedules
from robustness.tasks import TaskSettings, evaluate_tasks
from robustness.tasks.harness import load_tasks, quiet
from robustness.tasks.settings import TASKS


def ours(path: str, names: list[str], data: str, limit: int) -> float:
    """Seconds of everything after the model is open."""
    model = open_model(path)
    started = time.perf_counter()
    evaluate_tasks(model, TaskSettings(names, data=data, limit=limit))
    return time.perf_counter() - started


def harness(path: str, names: list[str], data: str, limit: int) -> float:
    """Seconds of one `simple_evaluate` a schedule, the clean one included."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    tokenizer = AutoTokenizer.from_pretrained(path)
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    plain.config.use_cache = False
    holder = plain.base_model
    name = next(name for name, part in holder.named_children() if isinstance(part, ModuleList))
    blocks = list(getattr(holder, name))
    runs = [clean(len(blocks)), *schedules(["drop", "swap"], len(blocks)).values()]
    loaded = list(load_tasks(TaskSettings(names, data=data)).values())
    started = time.perf_counter()
    for run in runs:
        net = copy.copy(plain)
        setattr(holder, name, ModuleList(blocks[step] for step in run))
        net.config.num_hidden_layers = len(run)
        with quiet():
            simple_evaluate(
                HFLM(pretrained=net, tokenizer=tokenizer, batch_size=8),
                tasks=loaded,
                limit=limit,
                bootstrap_iters=100,
            )
    return time.perf_counter() - started


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("names", nargs="*", default=list(TASKS))
    parser.add_argument("--limit", type=int, default=200)
    wanted = parser.parse_args()
    one = ours(wanted.model, wanted.names, wanted.data, wanted.limit)
    many = harness(wanted.model, wanted.names, wanted.data, wanted.limit)
    print(f"ours {one:.1f} s, the harness once a schedule {many:.1f} s: {many / one:.2f} times")


if __name__ == "__main__":
    main()
