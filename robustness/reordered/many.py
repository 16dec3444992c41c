"""Greedy continuations of many prompts at once, by a model whose blocks run in another order."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from robustness.errors import Refusal
from robustness.models import pass_check
from robustness.models.exact_products import exact_products
from robustness.models.model import Model
from robustness.reordered.generation import generation_options
from robustness.reordered.rebuilding import rebuild
from robustness.reordered.settings import Sampling
from robustness.schedules import Schedule
from robustness.sweeps.rewiring import rewire

Ended = Callable[[int, Sequence[int]], bool]
"""Function of the number of a prompt and its new token ids that says whether they are enough."""


class Writer:
    """A model in another order that continues prompts.

    A schedule of whole blocks runs in a plain model with a cache of keys and values, and prompts of
    several lengths are padded on the left, if the model is found to give a padded prompt the same
    logits. Any other schedule runs in the rewired model, prompt by prompt.

    Parameters
    ----------
    model : Model
        An opened model with its weights in memory.
    schedule : tuple
        Steps to execute.

    Raises
    ------
    Refusal
        If the model is on a server.
    """

    def __init__(self, model: Model, schedule: Schedule) -> None:
        if model.request:
            raise Refusal(f"{model.name} is on a server: open it on this machine to generate")
        self._model = model
        self._takes_padding: bool | None = None
        self._net: Any = None
        self._rewired: Any = None
        try:
            self._net = rebuild(model, schedule)
        except Refusal:
            self._rewired = rewire(model, schedule)

    def write(
        self, prompts: Sequence[Sequence[int]], most: Sequence[int], ended: Ended
    ) -> list[tuple[int, ...]]:
        """Return the most likely continuation of each prompt.

        Parameters
        ----------
        prompts : sequence of sequence of int
            Token ids.
        most : sequence of int
            Maximum number of tokens to write of each.
        ended : callable
            Function that says of a prompt's new tokens whether they are enough.

        Returns
        -------
        list of tuple of int
            New tokens of each prompt, without the token that ends a text and what follows it.
        """
        together = self._net is not None and (
            len({len(prompt) for prompt in prompts}) == 1 or self._padded(prompts)
        )
        if together:
            return self._write(prompts, most, ended)
        written: list[tuple[int, ...]] = []
        for at, prompt in enumerate(prompts):
            # Alone, a prompt is the first of its batch.
            written += self._write([prompt], [most[at]], partial(_of_row, ended, at))
        return written

    def _write(
        self, prompts: Sequence[Sequence[int]], most: Sequence[int], ended: Ended
    ) -> list[tuple[int, ...]]:
        """Continue prompts in one batch."""
        model, most_of_all = self._model, max(most)
        ids, mask = self._pad(prompts, max(map(len, prompts)))
        ending = _Ending(ids.shape[1], most, ended)
        options = generation_options(model, Sampling(tokens=most_of_all))
        options["stopping_criteria"] = StoppingCriteriaList([ending])
        with torch.no_grad(), exact_products():
            if self._net is not None:
                result = self._net.generate(ids, attention_mask=mask, use_cache=True, **options)
            else:
                rewired = self._rewired
                with model.lock, rewired.generate(ids, use_cache=False, **options) as tracer:
                    result = tracer.result.save()
        last = pass_check.ending_tokens(model)
        written = []
        for row, new in enumerate(result[:, ids.shape[1] :].tolist()):
            new = new[: ending.lengths.get(row, most[row])]
            ends = [at for at, token in enumerate(new) if token in last]
            written.append(tuple(new[: ends[0]] if ends else new))
        return written

    def _pad(self, prompts: Sequence[Sequence[int]], width: int) -> tuple[Tensor, Tensor]:
        """Return tokens and their mask, (prompt, token), padded on the left."""
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        return ids.to(self._model.device), mask.to(self._model.device)

    def _padded(self, prompts: Sequence[Sequence[int]]) -> bool:
        """Whether a prompt has the same logits with padding on its left, measured once."""
        if self._takes_padding is None:
            shortest = min(prompts, key=len)
            alone = self._first_logits(*self._pad([shortest], len(shortest)))
            padded = self._first_logits(*self._pad([shortest], max(map(len, prompts))))
            largest = max(1.0, float(alone.abs().max()))
            tolerance = 64 * torch.finfo(alone.dtype).eps * largest
            self._takes_padding = float((alone - padded).abs().max()) <= tolerance
        return self._takes_padding

    def _first_logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the logits of the first new token."""
        options = generation_options(self._model, Sampling(tokens=1))
        options |= {"output_logits": True, "return_dict_in_generate": True}
        with torch.no_grad(), exact_products():
            logits = self._net.generate(ids, attention_mask=mask, use_cache=True, **options).logits
        first: Tensor = logits[0]
        return first


def _of_row(ended: Ended, row: int, _: int, new: Sequence[int]) -> bool:
    return ended(row, new)


class _Ending(StoppingCriteria):  # type: ignore[misc]
    """Criterion of transformers that ends each row by itself, and notes how long it became."""

    def __init__(self, before: int, most: Sequence[int], ended: Ended) -> None:
        self.lengths: dict[int, int] = {}
        self._before, self._most, self._ended = before, most, ended

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Return which rows have ended, (row,)."""
        new = input_ids[:, self._before :].tolist()
        for row, ids in enumerate(new):
            if row in self.lengths:
                continue
            if len(ids) >= self._most[row] or self._ended(row, ids):
                self.lengths[row] = len(ids)
        ended = [row in self.lengths for row in range(len(new))]
        return torch.tensor(ended, device=input_ids.device)
