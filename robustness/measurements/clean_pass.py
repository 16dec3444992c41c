"""A traced clean pass over a batch of texts, which several measurements share."""

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
from robustness.runs import remote_traffic
from robustness.runs.batching import query_positions
from robustness.text.corpus import Corpus
from robustness.trace import capture
from robustness.trace.types import Captured, Matrix, Modules, TokenFacts

Finish = Callable[[list[dict[str, Any]], dict[str, Any], dict[str, Any]], dict[str, Tensor]]
"""Function of the tensors of all layers, the model's parts and the text; it returns the result."""


class LayerReading(Protocol):
    """The part of a measurement that a trace needs."""

    @property
    def measure(self) -> Callable[[Captured, TokenFacts], dict[str, Any]]:
        """Function that reduces the captures at one layer to tensors, by name."""

    @property
    def finish(self) -> Finish | None:
        """Function that joins all layers; without one their tensors are stacked."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the captures besides the residual stream; see `Captured`."""

    @property
    def final(self) -> bool:
        """Whether the last residual stream is measured, too."""


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
    half: bool = False
    """Whether its tensors are in half precision, so that a number takes 2 bytes on the way."""


def needs_of(readings: Sequence[LayerReading]) -> list[str]:
    """Return the names of everything that some measurements capture, each once."""
    needs: set[str] = set()
    return sorted(needs.union(*(reading.needs for reading in readings)))


def predicts(readings: Sequence[LayerReading]) -> bool:
    """Whether some measurement applies the final norm and the head to residual streams."""
    return "prediction" in needs_of(readings)


def trace_parts(model: Model, structure: BlockStructure, matrix: Matrix | None = None) -> Modules:
    """Return the modules and facts that `capture.walk` takes as `parts`.

    Parameters
    ----------
    model : Model
        An opened model.
    structure : BlockStructure
        Result of `examine`.
    matrix : Matrix, optional
        Matrix of the head, for measurements that read logits; without it, the head is called.
    """
    return {**named_parts(model), **structure.known(), "matrix": matrix}


def outputs_of(dataset: xr.Dataset, texts: int) -> answer.Wanted:
    """Return the shapes of the tensors that become a dataset's variables, for a number of texts."""
    outputs = {}
    for name, variable in dataset.data_vars.items():
        outputs[str(name)] = ((*variable.shape[:-1], texts), answer.NUMBERS)
    return outputs


def measure_batch(
    model: Model,
    corpus: Corpus,
    rows: slice,
    measurements: Sequence[Measurement],
    parts: Modules,
    wanted: Sequence[answer.Wanted | None] | None = None,
) -> list[dict[str, Tensor]]:
    """Take measurements of some sequences of a corpus, in one trace.

    Parameters
    ----------
    model, measurements, parts, wanted
        As for `run_clean`.
    corpus : Corpus
        Token sequences.
    rows : slice
        Which sequences are read.
    """
    # No wider than the longest of these sequences, which saves computing on padding.
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
        Token ids, on the model's device.
    readings : sequence of Measurement or Reading
        The measurements.
    parts : Modules
        Result of `trace_parts`.
    text : dict
        Facts about the tokens.
    wanted : sequence of mapping or None
        Shapes of the tensors of each measurement, which is all that a server may send. None if they
        are not known: a server may then send as many numbers as all residual streams have, with
        the text as the last dimension.

    Returns
    -------
    list of dict of str to tensor
        Tensors of each measurement by name.

    Raises
    ------
    Refusal
        If a server sends other tensors.
    """
    # Plain tuples, since a server cannot rebuild dataclasses.
    calls = [(reading.measure, reading.finish, reading.final) for reading in readings]
    needs = needs_of(readings)
    states = (model.layers + 1) * tokens.numel() * model.width
    sizes = [states if shapes is None else answer.size(shapes) for shapes in wanted]
    request = model.asking(sum(sizes))
    if model.request and predicts(readings) and "targets" in text:
        logits = remote_traffic.of_lens(model, tokens.numel())
        parts = {**parts, "there": model.head_there(logits)}
    # nnsight drops a context manager that stands after the trace: all others come before it.
    with model.computing(), model.traced.trace(tokens, use_cache=False, **request):
        taken = nnsight.save(capture.walk(calls, needs, parts, text))
    return _checked(taken, len(tokens), wanted) if model.request else taken


def _checked(
    taken: Any, texts: int, wanted: Sequence[answer.Wanted | None]
) -> list[dict[str, Tensor]]:
    """Return the tensors of a server's answer, once their names, shapes and types are checked."""
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
