"""Answers to lm-eval: the continuations and prompts that it asks for, and what it makes of them.

The harness runs once to collect what it asks for, and once for each schedule to compute metrics of
the answers. Its cache is not used, so that answers of two schedules cannot mix.
"""

from collections.abc import Callable, Sequence
from typing import Any

from robustness.errors import Refusal, first_line, reading
from robustness.models.model import Model
from robustness.tasks.harness import LOADING_ERRORS, Tasks, quiet
from robustness.tasks.prompts import Prompt, as_prompt

Request = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a context and of the continuation that is scored."""

Answer = tuple[float, bool]
"""Log-likelihood of a continuation in nats, and whether each of its tokens is the most likely."""

Respond = Callable[[Sequence[Any]], list[Any]]
"""Function that returns the answer to each `Request`, and the text that continues each `Prompt`."""


EXAMPLES = 1234
"""Seed of the examples in prompts, lm-eval's own."""


def wanted_requests(
    model: Model, tasks: Tasks, limit: int | None
) -> tuple[list[Request], list[Prompt]]:
    """Return every continuation and every prompt that the harness asks for, each once.

    Raises
    ------
    Refusal
        If no prompts can be made of the items, or a continuation is too long for the model.
    """
    # A dictionary keeps the order in which requests are added, which a set does not.
    wanted: dict[Request | Prompt, None] = {}

    def collect(requests: Sequence[Any]) -> list[Any]:
        wanted.update(dict.fromkeys(requests))
        return ["" if isinstance(request, Prompt) else (0.0, False) for request in requests]

    what, remedy = f"the items of {', '.join(tasks)}", "see that each fits its task"
    with reading(what, remedy):
        try:
            run_harness(model, tasks, limit, collect)
        except LOADING_ERRORS as error:
            raise Refusal(
                f"{what} cannot be made into prompts ({first_line(error)}): {remedy}"
            ) from error
    longest = longest_text(model)
    scored: list[Request] = []
    prompts: list[Prompt] = []
    for request in wanted:
        if isinstance(request, Prompt):
            prompts.append(request)
            continue
        scored.append(request)
        if len(request[1]) > longest:
            raise Refusal(
                f"a continuation of {len(request[1])} tokens is longer than {model.name} takes"
            )
    return scored, prompts


def longest_text(model: Model) -> int:
    """Return lm-eval's maximum number of tokens of a context and a continuation."""
    from lm_eval.models.utils import resolve_max_length

    return int(resolve_max_length(model.config, model.tokenizer))


def run_harness(
    model: Model, tasks: Tasks, limit: int | None, respond: Respond, bootstrap: int = 0
) -> dict[str, Any]:
    """Run the harness on a model that answers with a given function.

    Parameters
    ----------
    model : Model
        The model, whose tokenizer is used.
    tasks : dict
        Result of `load_tasks`.
    limit : int, optional
        Maximum number of items of each task.
    respond : callable
        Function that returns the answers.
    bootstrap : int
        Number of samples for the errors of metrics that are no means.

    Returns
    -------
    dict
        `results` and `samples` by task, among others.
    """
    from lm_eval.evaluator import evaluate

    # Examples in prompts are drawn by random numbers that go on from one run to the next.
    for task in tasks.values():
        task.set_fewshot_seed(seed=EXAMPLES)
    with quiet():
        evaluated: dict[str, Any] = evaluate(
            _answering_model(model, respond),
            {"tasks": dict(tasks), "groups": {}, "group_map": {}},
            limit=limit,
            bootstrap_iters=bootstrap,
            log_samples=True,
        )
    return evaluated


def _answering_model(model: Model, respond: Respond) -> Any:
    """Return a model for lm-eval that tokenizes as its own do, and answers with a function."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import has_bos_prefix

    tokenizer = model.tokenizer

    # Made in a function, since lm-eval may not be installed and takes seconds to import.
    class Answering(TemplateLM):  # type: ignore[misc]
        @property
        def eot_token_id(self) -> int:
            last = tokenizer.eos_token_id
            return int(tokenizer.bos_token_id if last is None else last)

        @property
        def prefix_token_id(self) -> int:
            first = tokenizer.bos_token_id
            return int(tokenizer.eos_token_id if first is None else first)

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **_: Any
        ) -> list[int]:
            # Prompts that begin with BOS do not get another one.
            special = add_special_tokens
            if special is None and has_bos_prefix(string, tokenizer.decode(self.prefix_token_id)):
                special = False
            chosen = {} if special is None else {"add_special_tokens": special}
            ids: list[int] = tokenizer.encode(string, **chosen)
            return ids

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[Answer]:
            return respond([(tuple(context), tuple(ids)) for _, context, ids in requests])

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise Refusal("tasks that score whole texts are not run")

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            end = tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
            prompts = []
            for request in requests:
                # Requests of tasks with pictures have more arguments than these two.
                text, settings = request.args
                ids = self.tok_encode(text)
                prompts.append(
                    as_prompt(ids, settings, end, longest_text(model), request.task_name)
                )
            return respond(prompts)

    return Answering()
