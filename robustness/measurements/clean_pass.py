"""One traced clean pass over a batch of texts, which several measurements share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import nnsight
import torch
import xarray as xr
from torch import Tensor

from robustness.measurements.measurement import Measurement
from robustness.models.block_structure import BlockStructure, named_parts
from robustness.models.model import Model
from robustness.ndif import answer
from robustness.runs.batching import query_positions
from robustness.text.corpus import Corpus
from robustness.trace import capture
from robustness.trace.types import Captured, Matrix, Modules, TokenFacts

Finish = Callable[[list[dict[str, Any]], dict[str, Any], dict[str, Any]], dict[str, Tensor]]
"""Reduction of what was measured at all layers, given the model's parts and the text."""


class LayerReading(Protocol):
    """What a trace needs to know of a measurement."""

    @property
    def measure(self) -> Callable[[Captured, TokenFacts], dict[str, Any]]:
        """Reduction of what is captured at one layer to tensors by name."""

    @property
    def finish(self) -> Finish | None:
        """Reduction of all layers; without it they are stacked."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of what is captured besides the residual stream; see `Captured`."""

    @property
    def final(self) -> bool:
        """Whether the last residual stream is measured too."""


@dataclass(frozen=True)
class Reading:
    """A measurement of single short texts, whose tensors have the text as their last dimension."""

    measure: Callable[[Captured, TokenFacts], dict[str, Any]]
    """As in `Measurement`."""
    finish: Finish | None = None
    """As in `Measurement`."""
    needs: tuple[str, ...] = ()
    """As in `Measurement`."""
    final: bool = False
    """As in `Measurement`."""


def needs_of(readings: Sequence[LayerReading]) -> list[str]:
    """Return the names of all that some measurements capture, each once."""
    return sorted({need for reading in readings for need in reading.needs})


def predicts(readings: Sequence[LayerReading]) -> bool:
    """Whether a measurement reads residual streams with the final norm and the head."""
    return "prediction" in needs_of(readings)


def trace_parts(model: Model, structure: BlockStructure, matrix: Matrix | None = None) -> Modules:
    """Return the modules and facts that `capture.walk` takes as `parts`.

    Parameters
    ----------
    model : Model
        An opened model.
    structure : BlockStructure
        As `examine` found it.
    matrix : pair of tensors, optional
        What logits are read by, where something reads them.
    """
    known = named_parts(model) | structure.known()
    if matrix is not None:
        known["matrix"] = matrix
    return known


def outputs_of(dataset: xr.Dataset, texts: int) -> answer.Wanted:
    """Return the shapes, for so many texts, of the tensors that become a dataset's variables."""
    return {
        str(name): ((*variable.shape[:-1], texts), answer.NUMBERS)
        for name, variable in dataset.data_vars.items()
    }


def measure_batch(
    model: Model,
    corpus: Corpus,
    rows: slice,
    measurements: Sequence[Measurement],
    parts: Modules,
    wanted: Sequence[answer.Wanted | None] | None = None,
) -> list[dict[str, Tensor]]:
    """Take measurements on some sequences of a corpus, in one trace.

    Parameters
    ----------
    model, measurements, parts, wanted
        As for `run_clean`.
    corpus : Corpus
        Token sequences.
    rows : slice
        Which of them are read.
    """
    tokens = torch.from_numpy(corpus.tokens[rows, : corpus.lengths[rows].max()]).to(model.device)
    text: dict[str, Any] = {}
    for measurement in measurements:
        text |= measurement.settings
    text |= {
        "vocabulary": model.vocabulary,
        "lengths": torch.from_numpy(corpus.lengths[rows]).to(model.device),
        "centres": parts["centres"],
        "parallel": parts["parallel"],
        **query_positions(corpus, rows, tokens),
    }
    text["counted"] = torch.zeros(tokens.shape, dtype=torch.bool, device=model.device)
    text["counted"][:, text["first"] : text["last"]] = text["compared"]
    unknown = [None] * len(measurements)
    return run_clean(model, tokens, measurements, parts, cast(TokenFacts, text), wanted or unknown)


def run_clean(
    model: Model,
    tokens: Tensor,
    readings: Sequence[LayerReading],
    parts: Modules,
    text: TokenFacts,
    wanted: Sequence[answer.Wanted | None],
) -> list[dict[str, Tensor]]:
    """Take measurements during one clean pass.

    Parameters
    ----------
    model : Model
        An opened model.
    tokens : int64 tensor of shape (text, token)
        On the model's device.
    readings : sequence of Measurement or Reading
        What is measured.
    parts : Modules
        As from `trace_parts`.
    text : dict
        What is known of the tokens.
    wanted : sequence of mapping or None
        Shapes of what each measurement gives, which is all that a server may send. Where that is
        not known, it is at most as large as all residual streams, the text its last dimension.

    Returns
    -------
    list of dict of str to tensor
        Tensors of each measurement by name.

    Raises
    ------
    Refusal
        If a server sends anything else.
    """
    # Tuples, because what travels is made of plain values.
    calls = [(reading.measure, reading.finish, reading.final) for reading in readings]
    needs = needs_of(readings)
    states = (model.layers + 1) * tokens.numel() * model.width
    sizes = [states if shapes is None else answer.size(shapes) for shapes in wanted]
    request = model.asking(sum(sizes))
    with model.lock, torch.no_grad(), model.traced.trace(tokens, use_cache=False, **request):
        taken = nnsight.save(capture.walk(calls, needs, parts, text))
    return _checked(taken, len(tokens), wanted) if model.request else taken


def _checked(
    taken: Any, texts: int, wanted: Sequence[answer.Wanted | None]
) -> list[dict[str, Tensor]]:
    """Refuse what a server sends that is not what was asked for."""
    answer.plain({"taken": taken}, {"taken": [dict]})
    if len(taken) != len(wanted):
        raise answer.unexpected(f"it is of {len(taken)} measurements")
    checked = []
    for tensors, shapes in zip(taken, wanted, strict=True):
        for tensor in tensors.values():
            if not isinstance(tensor, Tensor) or tensor.shape[-1:] != (texts,):
                raise answer.unexpected(f"it is not of {texts} texts")
        checked.append(tensors if shapes is None else answer.take(tensors, shapes))
    return checked
