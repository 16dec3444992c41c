"""Requirements of measurements: what a model and a corpus must have for them."""

from collections.abc import Sequence

from robustness.errors import Refusal, is_out_of_memory, last_line
from robustness.measurements.clean_pass import measure_batch, needs_of, predicts, trace_parts
from robustness.measurements.measurement import MEASUREMENTS, Measurement
from robustness.models.block_structure import BlockStructure, examine
from robustness.models.model import Model
from robustness.runs.batching import check_corpus
from robustness.runs.portions import Portions
from robustness.text.corpus import Corpus
from robustness.trace.types import Modules

SMALLEST_GROUP = 16
"""Minimum number of sequences that are reduced together."""

CALL_ERRORS = (TypeError, ValueError, RuntimeError, LookupError, AttributeError)
"""Errors that a model's code raises when it is not called as it expects."""


def choose(measurements: Sequence[str | Measurement]) -> list[Measurement]:
    """Return measurements by their names.

    Raises
    ------
    Refusal
        If there is no such measurement, or two have the same name.
    """
    chosen: dict[str, Measurement] = {}
    for each in measurements:
        measurement = each if isinstance(each, Measurement) else MEASUREMENTS.get(each)
        if measurement is None:
            raise Refusal(f"no measurement {each!r}; there are: {', '.join(MEASUREMENTS)}")
        if measurement.name in chosen:
            raise Refusal(f"two measurements are called {measurement.name!r}: rename one of them")
        chosen[measurement.name] = measurement
    return list(chosen.values())


def check_measurement(measurement: Measurement, corpus: Corpus, structure: BlockStructure) -> None:
    """Refuse a measurement that the model or the corpus does not allow."""
    # Reasons are given in this order: a short document of the paper's corpus cannot be helped by a
    # larger context.
    name, least = measurement.name, int(corpus.lengths.min())
    if least < measurement.shortest and corpus.authors_alignment:
        raise Refusal(
            f"{name} takes sequences of at least {measurement.shortest} tokens, and one of the "
            f"documents has {least}: take windows instead of `paper_compat`"
        )
    if measurement.grouped and least < corpus.lengths.max():
        raise Refusal(
            f"{name} takes sequences of one length: take windows instead of `paper_compat`"
        )
    if least < measurement.shortest:
        raise Refusal(
            f"{name} takes sequences of at least {measurement.shortest} tokens, and there is one "
            f"of {least}: ask for `context` {measurement.shortest} or more"
        )
    if measurement.grouped and len(corpus.tokens) < SMALLEST_GROUP:
        raise Refusal(
            f"{name} takes at least {SMALLEST_GROUP} sequences, and there are "
            f"{len(corpus.tokens)}: ask for more `tokens`, or a smaller `context`"
        )
    check_needs(name, measurement.needs, structure, partly=measurement.partly)


def check_needs(
    name: str, needs: Sequence[str], structure: BlockStructure, *, partly: bool = False
) -> None:
    """Refuse a measurement that needs captures which this model does not allow.

    Parameters
    ----------
    name : str
        Name of the measurement.
    needs : sequence of str
        Names of the captures besides the residual stream.
    structure : BlockStructure
        Result of `examine` for these needs.
    partly : bool
        Whether it is enough if some of the blocks allow them.
    """
    for need in needs:
        reason = structure.missing.get(need) or ("" if partly else structure.partly.get(need))
        if reason:
            raise Refusal(f"{name} cannot be measured: {reason}")


def unfit(
    model: Model, corpus: Corpus, measurements: Sequence[str | Measurement]
) -> dict[str, str]:
    """Return the reasons why measurements cannot be taken, by name of the measurement.

    Measurements that meet the requirements are tried on two sequences: first together, and if that
    fails, one by one. On a server they are not tried, since a trial would be a request.
    """
    check_corpus(model, corpus)
    chosen = choose(measurements)
    structure = examine(model, needs_of(chosen))
    reasons: dict[str, str] = {}
    fitting = []
    for measurement in chosen:
        try:
            check_measurement(measurement, corpus, structure)
        except Refusal as error:
            reasons[measurement.name] = str(error)
        else:
            fitting.append(measurement)
    if model.request or not fitting:
        return reasons
    matrix = Portions().matrix(model.unembedding, 0) if predicts(fitting) else None
    parts = trace_parts(model, structure, matrix)
    if not _fault(model, corpus, fitting, parts):
        return reasons
    for measurement in fitting:
        fault = _fault(model, corpus, [measurement], parts)
        if fault:
            reasons[measurement.name] = f"{measurement.name} cannot be measured: {fault}"
    return reasons


def _fault(
    model: Model, corpus: Corpus, measurements: Sequence[Measurement], parts: Modules
) -> str:
    """Return the error of measurements on two sequences, or an empty string."""
    try:
        measure_batch(model, corpus, slice(0, 2), measurements, parts)
    except (*CALL_ERRORS, MemoryError) as error:
        # No reason to leave it out: the run itself goes on in smaller portions.
        if is_out_of_memory(error):
            return ""
        return f"{model.name} ({model.identity['architecture']}): {last_line(error)}"
    return ""
