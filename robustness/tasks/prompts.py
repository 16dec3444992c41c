"""Prompts of tasks that generate text: what is continued, and where a continuation ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from robustness.errors import Refusal

TOKENS = 256
"""Maximum number of tokens to write where a task does not say, as in lm-eval."""

GREEDY = {"do_sample": False, "temperature": 0.0}
"""Settings of the choice of the most likely token, the only one that is made."""

IGNORED = ("top_p", "top_k", "min_p")
"""Settings of drawing that do not matter where the most likely token is taken."""


@dataclass(frozen=True)
class Prompt:
    """A text to continue, token by token, each the most likely one."""

    context: tuple[int, ...]
    """Token ids of the text."""
    stops: tuple[str, ...]
    """Texts at the first of which a continuation ends; they are no part of it."""
    tokens: int
    """Maximum number of tokens to write."""


@dataclass(frozen=True)
class Prompts:
    """Prompts of a run, in the order in which the harness asks for them."""

    asked: Sequence[Prompt]

    @cached_property
    def order(self) -> list[int]:
        """Indices of the prompts in order of length."""
        return sorted(range(len(self.asked)), key=lambda at: self._length(self.asked[at]))

    @cached_property
    def lengths(self) -> list[int]:
        """Maximum number of tokens of each prompt with its continuation, in order of length."""
        return [self._length(self.asked[at]) for at in self.order]

    @property
    def most(self) -> int:
        """Maximum number of tokens that are written."""
        return max((prompt.tokens for prompt in self.asked), default=0)

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, rows: slice) -> list[Prompt]:
        """Return some prompts in order of length."""
        return [self.asked[at] for at in self.order[rows]]

    def _length(self, prompt: Prompt) -> int:
        return len(prompt.context) + prompt.tokens


def as_prompt(
    ids: Sequence[int], settings: Mapping[str, Any], end: str, longest: int, task: str
) -> Prompt:
    """Return the prompt that a request of lm-eval asks to continue.

    A text that is too long is cut on the left, as the harness does. A task that writes as much as
    the model takes, which the harness cannot run, writes up to half of it.

    Parameters
    ----------
    ids : sequence of int
        Token ids of the text.
    settings : mapping
        What the task says about generation.
    end : str
        Text of the token that ends a text.
    longest : int
        Maximum number of tokens that the model takes.
    task : str
        Name of the task, for messages.

    Raises
    ------
    Refusal
        If the task draws tokens at random, or has settings that are not known.
    """
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    known = dict(normalize_gen_kwargs(dict(settings), TOKENS))
    stops = handle_stop_sequences(known.pop("until", None), eos=end)
    tokens = int(known.pop("max_gen_toks"))
    for name, value in known.items():
        if name not in IGNORED and GREEDY.get(name, None) != value:
            raise Refusal(
                f"{task} generates with {name} = {value!r}, and only the most likely token is "
                "taken here: choose another task"
            )
    if tokens >= longest:
        tokens = longest // 2
    if tokens < 1 or not ids:
        raise Refusal(f"{task} has a prompt without tokens, or none to write: choose another task")
    return Prompt(tuple(ids)[-(longest - tokens) :], tuple(filter(None, stops)), tokens)


def as_answer(tokenizer: Any, prompt: Prompt, ids: Sequence[int]) -> str:
    """Return the text of a continuation up to the first of its stops, as lm-eval cuts it."""
    from lm_eval.models.utils import postprocess_generated_text

    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    return str(postprocess_generated_text(text, list(prompt.stops), None))
