"""Scales of the residual stream that stand in the place of removed blocks."""

from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from robustness.healing import capture
from robustness.healing.capture import Captured, StreamPlace
from robustness.healing.cuts import cuts
from robustness.models.model import Model
from robustness.schedules import Schedule, StreamScale, check
from robustness.text.corpus import Corpus

DIGITS = 5
"""Significant digits of a fitted scale, which stands in the text of a schedule."""


@dataclass
class Products:
    """Weighted sums over tokens of products of the streams h and y before and behind a span."""

    crossed: float = 0.0
    """Σ w h·y."""
    squares: float = 0.0
    """Σ w h·h."""

    def add(self, states: Captured, weights: Tensor) -> None:
        """Add the tokens of a sequence, of which weights (token,) are float64."""
        before, behind = states.entering, states.target
        self.crossed += float(weights @ (before * behind).sum(1))
        self.squares += float(weights @ before.square().sum(1))

    @property
    def scale(self) -> float:
        """The factor f that minimises Σ w |f h − y|², rounded to five digits."""
        return _rounded(self.crossed / self.squares)


def size_ratios(
    model: Model, schedule: Schedule | str, corpus: Corpus, *, batch_tokens: int | None = None
) -> Schedule:
    """Put the ratio of the streams' sizes in the place of every span that a schedule lacks.

    In every sequence, the mean absolute value over tokens of every feature behind the span is
    divided by the same of the stream that enters its place. The scale is the mean of these ratios
    over sequences and features (Prune&Comp, arXiv 2507.18212). It asks how much longer the stream
    becomes, whichever way it turns; `heal` fits scales by least squares, which also ask how much
    of the longer stream lies in the direction of the one before.

    Parameters
    ----------
    model : Model
        An opened model with its weights on this machine.
    schedule : tuple of int, or str
        Some of the blocks in their order, as `0..3-8..`.
    corpus : Corpus
        Token sequences.
    batch_tokens : int, optional
        Tokens of text in one trace; by default what suits the device.

    Returns
    -------
    tuple
        The schedule with scales, as `0..3-*1.19-8..`.

    Raises
    ------
    Refusal
        If the schedule is none from which whole blocks were removed, or the model is on a server.
    """
    healed: Schedule = ()
    following = 0
    for first, last in cuts(check(schedule, model.layers), model.layers):
        healed += tuple(range(following, first))
        following = last + 1
        at = [StreamPlace(healed, None, following)]
        states = capture.states(model, corpus, at, batch_tokens)
        ratios = [_size_ratio(captured[0]) for _, captured in states]
        healed += (StreamScale(_rounded(fmean(ratios))),)
    return healed + tuple(range(following, model.layers))


def _size_ratio(states: Captured) -> float:
    """Return the mean over features of the ratio of mean absolute values behind and before."""
    before, behind = states.entering.abs().mean(0), states.target.abs().mean(0)
    # A feature that is always 0 has no ratio.
    alive = before > 0
    return float((behind[alive] / before[alive]).mean())


def _rounded(factor: float) -> float:
    return float(f"{factor:.{DIGITS}g}")
