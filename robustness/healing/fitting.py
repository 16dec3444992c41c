"""Fitting: scales and maps that stand in the place of removed blocks, from one pass over a text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from robustness.errors import Refusal
from robustness.files.provenance import project_version
from robustness.healing import capture
from robustness.healing.capture import Captured, StreamPlace
from robustness.healing.least_squares import RIDGES, Sums, choose_ridge
from robustness.healing.scales import Products
from robustness.models.maps import Fitted, Maps
from robustness.models.model import Model
from robustness.schedules import Attention, Mapped, Mlp, Schedule, StreamMap, check, clean, to_text
from robustness.text.corpus import Corpus

SMALLEST = 1e-30
"""Smallest square of a stream's norm that a token is weighted by."""

OWNER = ("model", "revision", "weights_sha256", "config_sha256", "architecture")
"""Entries of a model's identity that its maps keep."""


@dataclass(frozen=True)
class Fitting:
    """Settings of a pass in which something is fitted; see `fit`."""

    ridges: Sequence[float] = RIDGES
    batch_tokens: int | None = None
    progress: Callable[[int, int], object] | None = None


def fit(
    model: Model,
    corpus: Corpus,
    maps: Sequence[Fitted | str],
    *,
    ridges: Sequence[float] = RIDGES,
    batch_tokens: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Maps:
    """Fit maps to the clean model's residual stream, all of them in one pass over a text.

    `~4..7` predicts the stream behind block 7 from the stream before block 4. `m3~4..7` and
    `3~4..7` predict the same from what the MLP of block 3, or block 3, adds, which is multiplied by
    a matrix and added to the stream before it. Minimised is the sum over tokens of the squared
    error over the square of the predicted stream's norm, and a ridge.

    Parameters
    ----------
    model : Model
        An opened model with its weights on this machine.
    corpus : Corpus
        Token sequences, of two documents at least: one of four chooses the ridge.
    maps : sequence of StreamMap, Mapped or str
        Maps to fit.
    ridges : sequence of float
        Ridges to choose from, relative to the mean sum of squares of an input; see
        `healing.least_squares`. A ridge draws a map towards the one that changes nothing.
    batch_tokens : int, optional
        Tokens of text in one trace; by default what suits the device.
    progress : callable, optional
        Callback for the number of sequences that are done, and of all.

    Returns
    -------
    Maps
        The maps; `model.with_maps` takes them.

    Raises
    ------
    Refusal
        If a map is none, the model has no sublayers that it needs, the model is on a server, or the
        text has a single sequence.
    """
    steps = [_as_map(step, model.layers) for step in maps]
    places = [place_of(step, ()) for step in steps]
    settings = Fitting(ridges, batch_tokens, progress)
    fitted, _ = fit_at(model, corpus, dict(zip(steps, places)), settings)
    return fitted


def place_of(step: Fitted, before: Schedule) -> StreamPlace:
    """Return the place of a map behind other steps, by default those of the clean model."""
    if isinstance(step, StreamMap):
        return StreamPlace(before or clean(step.first), None, step.last + 1)
    leaf = step.step
    if isinstance(leaf, Attention):
        raise Refusal(f"{step} is followed by an MLP: fit a map of that, or of the whole block")
    block = leaf.block if isinstance(leaf, Mlp) else leaf
    if block != step.first - 1:
        raise Refusal(f"{step} maps what block {step.first - 1} adds, the last before its span")
    if not before:
        before = clean(block)
        # The MLP of a sequential block reads what its attention has written.
        before += (Attention(block),) if isinstance(leaf, Mlp) else ()
    return StreamPlace(before, leaf, step.last + 1)


def fit_at(
    model: Model,
    corpus: Corpus,
    places: Mapping[Fitted, StreamPlace],
    settings: Fitting,
    scale: StreamPlace | None = None,
) -> tuple[Maps, float]:
    """Fit maps at some places of schedules, and a scale at another one, in one pass over a text.

    The scale is the factor of least squares: f h predicts the stream behind removed blocks from
    the stream h before them, and minimised is the same sum as for maps, without a ridge. It is
    rounded to five digits.

    Returns
    -------
    tuple
        Maps, and the scale, which is 1 without a place.
    """
    if len(corpus.tokens) < 2:
        raise Refusal("maps are fitted to 2 sequences at least: read more `tokens`")
    sums = [(Sums.empty(model.width), Sums.empty(model.width)) for _ in places]
    chooses, products = capture.held_out(corpus), Products()
    at = [*places.values(), *([] if scale is None else [scale])]
    size, progress = settings.batch_tokens, settings.progress
    for sequence, captured in capture.states(model, corpus, at, size, progress):
        for pair, states in zip(sums, captured):
            pair[chooses[sequence]].add(*_inputs_and_outputs(states), _weights(states))
        if scale is not None:
            products.add(captured[-1], _weights(captured[-1]))
    matrices, offsets, kept = {}, {}, {}
    one = torch.eye(model.width).double()
    for step, (fitted, held_out) in zip(places, sums, strict=True):
        whole = isinstance(step, StreamMap)
        ridge, change, offset = choose_ridge(fitted, held_out, settings.ridges, offset=whole)
        # Least squares predict what is missing, so that a ridge draws towards the cut alone.
        matrices[step], kept[step] = one + change, ridge
        if whole:
            offsets[step] = offset
    factor = 1.0 if scale is None else products.scale
    return Maps(matrices, offsets, kept, _attributes(model, corpus, places)), factor


def _weights(states: Captured) -> torch.Tensor:
    """Return the weights of tokens: one over the squared norm of the stream to predict."""
    # What reads a stream begins with a norm, so that errors count by the stream's size. A first
    # token, which some models make hundreds of times larger, would decide alone.
    return 1 / states.target.square().sum(1).clamp(min=SMALLEST)


def join(first: Maps, second: Maps) -> Maps:
    """Return the maps of both; of maps with the same name, those of the second."""
    fitted = [maps.attributes["fitted"] for maps in (first, second) if maps.matrices]
    return Maps(
        {**first.matrices, **second.matrices},
        {**first.offsets, **second.offsets},
        {**first.ridges, **second.ridges},
        {**first.attributes, **second.attributes, "fitted": ", ".join(fitted)},
    )


def _as_map(step: Fitted | str, layers: int) -> Fitted:
    """Return a map of a model of `layers` blocks, which may be a text."""
    checked = check(step if isinstance(step, str) else (step,), layers)
    if len(checked) != 1 or not isinstance(checked[0], (StreamMap, Mapped)):
        raise Refusal(f"{to_text(checked)} is no map: write ~4..7 or m3~4..7")
    return checked[0]


def _inputs_and_outputs(states: Captured) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a map is applied to, and what it has to add to the cut's stream."""
    if states.added is None:
        return states.entering, states.target - states.entering
    return states.added, states.target - states.entering - states.added


def _attributes(
    model: Model, corpus: Corpus, places: Mapping[Fitted, StreamPlace]
) -> dict[str, str]:
    """Return where maps come from, as their file keeps it."""
    behind = [f"{step} behind {to_text(place.before)}" for step, place in places.items()]
    return {
        **{name: model.identity[name] for name in OWNER if model.identity.get(name)},
        "corpus": corpus.name,
        "corpus_sha256": corpus.sha256(),
        "fitted": ", ".join(behind),
        "version": project_version(),
    }
