"""What the clean run shows at every depth: opens the one trace that all measurements share."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import nnsight
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from robustness.errors import Refusal, last_line, reading
from robustness.files import changes, results
from robustness.measurements.measurement import MEASUREMENTS, Measurement
from robustness.models.anatomy import Anatomy, examine, parts
from robustness.models.model import Model
from robustness.ndif import answer
from robustness.runs import remote_traffic
from robustness.runs.batching import batches, check_corpus, queries, rest, tokens_of_text
from robustness.runs.out_of_memory import Portions, is_out_of_memory
from robustness.runs.settings import Progress
from robustness.text.corpus import Corpus
from robustness.trace import capture

GROUP = 128
"""The most sequences in a batch where a measurement is of many sequences together."""

GROUPS = 8
"""Such batches to be had, by making them smaller if need be."""

SMALLEST_GROUP = 16
"""Sequences below which such a batch is not made smaller."""


def observe(
    model: Model,
    corpus: Corpus,
    measurements: Sequence[str | Measurement] = tuple(MEASUREMENTS),
    *,
    batch_tokens: int | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    command: str = "",
    progress: Progress | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> dict[str, xr.Dataset]:
    """Measure what the clean run shows at every depth; all measurements share one pass per batch.

    Parameters
    ----------
    model : Model
        An opened model.
    corpus : Corpus
        Token sequences.
    measurements : sequence of str or Measurement
        Names in `MEASUREMENTS`, or measurements of one's own.
    batch_tokens : int, optional
        Tokens of text in a trace, at most; sequences in a trace are a power of two.
    out : str or path, optional
        The directory in which a file per measurement is saved, `lens.nc` and so on. What is done is
        kept there on the way, and the same call goes on from it.
    fresh : bool
        Whether to throw away what is there.
    command : str
        The command line, for the record.
    progress : callable, optional
        Called at the start and after every batch.
    tell : callable
        Told when memory ran out and less is run at once from there on.

    Returns
    -------
    dict of str to Dataset
        By the measurement's name.

    Raises
    ------
    Refusal
        If there is no such measurement, the model or the corpus does not fit it, or `out` holds a
        run of other settings.
    """
    wanted = [_find(each) for each in measurements]
    names = [each.name for each in wanted]
    for name in names:
        if names.count(name) > 1:
            raise Refusal(f"two measurements are called {name!r}, and would share a file")
    check_corpus(model, corpus)
    anatomy = examine(model, [need for each in wanted for need in each.needs])
    group = _group(len(corpus.tokens))
    for each in wanted:
        _check(each, corpus, anatomy)
    batch_tokens = batch_tokens or tokens_of_text(model)
    size = min(group, 2 ** max(0, (batch_tokens // corpus.context).bit_length() - 1))
    described = {**model.identity, **corpus.settings(), "batch_tokens": batch_tokens}
    known = parts(model) | _facts(anatomy)
    with ExitStack() as stack:
        runs = [
            stack.enter_context(
                results.Run(
                    _blank(each, model, anatomy, corpus, group, described, command),
                    path=None if out is None else Path(out) / f"{each.name}.nc",
                    fresh=fresh,
                    complete=partial(_complete, each),
                )
            )
            for each in wanted
        ]
        pending: dict[str, list[Tensor]] = {each.name: [] for each in wanted}
        total = len(corpus.tokens)
        begin = min(run.done for run in runs)
        lower = "fewer --tokens or fewer measurements (lens is the dearest)"
        remote_traffic.allow(model, _crossings(model, corpus, wanted, begin, size), lower)
        unfinished = [run for run in runs if not run.finished]

        def lost(sequence: int, text: str) -> None:
            for run in unfinished:
                run.lost(max(sequence, run.done), text)

        def trace(
            measured: list[Measurement], part: slice, _: int | None
        ) -> list[dict[str, Tensor]]:
            asked = [
                None if each.grouped else _wanted(datasets[each.name], part.stop - part.start)
                for each in measured
            ]
            return _trace(model, corpus, part, measured, known, asked)

        datasets = {each.name: run.dataset for each, run in zip(wanted, runs, strict=True)}
        portions = Portions(lost, tell)
        for run in unfinished:
            portions.begin(changes.lowered(run.dataset.attrs))
        if begin < total and _predict(wanted):
            known["matrix"] = portions.matrix(model.unembedding, begin)
        whole = [slice(start, min(start + size, total)) for start in range(0, total, size)]
        for rows in rest(whole, [run.done for run in runs]):
            due = [
                (each, run)
                for each, run in zip(wanted, runs, strict=True)
                if rows.start >= run.done
                and not (each.grouped and rows.stop > total // group * group)
            ]
            if progress is not None:
                progress(rows.start, total)
            if not due:
                continue
            taking = partial(trace, [each for each, _ in due])
            for part, found in portions.each(rows, taking, partial(_tokens, corpus)):
                for (each, run), taken in zip(due, found, strict=True):
                    if each.grouped is None:
                        _check_names(each.name, taken, run.dataset)
                        run.add(part, {name: tensor.numpy() for name, tensor in taken.items()})
                        continue
                    waiting = pending[each.name]
                    waiting.extend(taken.values())
                    if part.stop % group == 0:
                        # What a server sends for one's own measurement may be of any shape.
                        with _received(model):
                            value = each.grouped(torch.cat(waiting, -1), anatomy)
                        waiting.clear()
                        _check_shape(each.name, value, run.dataset)
                        place = slice(part.stop // group - 1, part.stop // group)
                        done = slice(part.stop - group, part.stop)
                        run.add(done, {m.name: value[..., None] for m in each.variables}, place)
        if progress is not None:
            progress(total, total)
        return {each.name: run.finish() for each, run in zip(wanted, runs, strict=True)}


def _tokens(corpus: Corpus, rows: slice) -> int:
    """Return how many tokens sequences have when they are filled up."""
    return (rows.stop - rows.start) * int(corpus.lengths[rows].max())


def _received(model: Model) -> AbstractContextManager[None]:
    """Refuse what comes from a server and cannot be worked with."""
    if not model.request:
        return nullcontext()
    return reading("what the server answers", "give the same command again, or another --host")


def _facts(anatomy: Anatomy) -> dict[str, Any]:
    """Return what was found out of how a model is put together, as traces are handed it."""
    names = ("centres", "parallel", "heads", "epsilon")
    found: dict[str, Any] = {name: getattr(anatomy, name) for name in names}
    return found | ({"factors": anatomy.factors} if anatomy.factors else {})


def _predict(measurements: Sequence[Measurement]) -> bool:
    """Whether measurements read what states predict."""
    return any("prediction" in each.needs for each in measurements)


def unfit(model: Model, corpus: Corpus, measurements: Sequence[str]) -> dict[str, str]:
    """Return why measurements cannot be taken, by name, of those that cannot.

    Those that nothing forbids are tried on two sequences, together, and where that fails alone. Not
    on a server, where a trial would be a request.
    """
    check_corpus(model, corpus)
    wanted = [_find(name) for name in measurements]
    anatomy = examine(model, [need for each in wanted for need in each.needs])
    found, fitting = {}, []
    for each in wanted:
        try:
            _check(each, corpus, anatomy)
        except Refusal as error:
            found[each.name] = str(error)
        else:
            fitting.append(each)
    known = parts(model) | _facts(anatomy)
    if _predict(fitting):
        known["matrix"] = Portions().matrix(model.unembedding, 0)
    if fitting and not model.request and _fault(model, corpus, fitting, known):
        for each in fitting:
            fault = _fault(model, corpus, [each], known)
            if fault:
                found[each.name] = f"{each.name} cannot be measured: {fault}"
    return found


FAULTS = (TypeError, ValueError, RuntimeError, LookupError, AttributeError)
"""What the code of a model raises where it is not called as it expects to be."""


def _fault(
    model: Model, corpus: Corpus, measurements: Sequence[Measurement], known: dict[str, Any]
) -> str:
    """Return how measurements fail on two sequences, or nothing."""
    try:
        _trace(model, corpus, slice(0, 2), measurements, known)
    except (*FAULTS, MemoryError) as error:
        if is_out_of_memory(error):
            return ""
        return f"{model.name} ({model.identity['architecture']}): {last_line(error)}"
    return ""


def _crossings(
    model: Model, corpus: Corpus, wanted: Sequence[Measurement], begin: int, size: int
) -> list[remote_traffic.Crossing]:
    """Estimate the requests that are left of a run from a sequence on."""
    needs = sorted({need for each in wanted for need in each.needs})
    lengths = corpus.lengths[begin:]
    parts_of = (lengths[at : at + size] for at in range(0, len(lengths), size))
    widths = [len(part) * int(part.max()) for part in parts_of]
    lens = "prediction" in needs
    return [
        remote_traffic.of_walk(
            model, needs, width, remote_traffic.of_lens(model, width) if lens else 0
        )
        for width in widths
    ]


def _check_names(name: str, taken: Mapping[str, Tensor], dataset: xr.Dataset) -> None:
    missing, strange = dataset.keys() - taken.keys(), taken.keys() - dataset.keys()
    if missing or strange:
        raise Refusal(
            f"{name} gives {', '.join(sorted(taken)) or 'nothing'}; its variables are "
            f"{', '.join(sorted(map(str, dataset)))}"
        )


def _check_shape(name: str, value: NDArray[Any], dataset: xr.Dataset) -> None:
    for variable in dataset.data_vars.values():
        if value.shape != variable.shape[:-1]:
            raise Refusal(f"{name} gives {value.shape}; its variable is {variable.shape[:-1]}")


def _complete(measurement: Measurement, dataset: xr.Dataset, _: Any) -> xr.Dataset:
    return measurement.complete(dataset)


def _find(measurement: str | Measurement) -> Measurement:
    if isinstance(measurement, Measurement):
        return measurement
    if measurement not in MEASUREMENTS:
        raise Refusal(f"no measurement {measurement!r}; there are: {', '.join(MEASUREMENTS)}")
    return MEASUREMENTS[measurement]


def _check(measurement: Measurement, corpus: Corpus, anatomy: Anatomy) -> None:
    """Refuse a measurement that the model or the corpus does not allow."""
    name, least = measurement.name, int(corpus.lengths.min())
    if least < measurement.shortest and corpus.authors_alignment:
        raise Refusal(
            f"{name} takes sequences of at least {measurement.shortest} tokens, and one of the "
            f"documents has {least}: take windows instead of --paper-compat"
        )
    if measurement.grouped and least < corpus.lengths.max():
        raise Refusal(
            f"{name} takes sequences of one length: take windows instead of --paper-compat"
        )
    if least < measurement.shortest:
        raise Refusal(
            f"{name} takes sequences of at least {measurement.shortest} tokens, and there is one "
            f"of {least}: ask for a --context of {measurement.shortest} or more"
        )
    if measurement.grouped and len(corpus.tokens) < SMALLEST_GROUP:
        raise Refusal(
            f"{name} takes at least {SMALLEST_GROUP} sequences, and there are "
            f"{len(corpus.tokens)}: ask for more --tokens, or a smaller --context"
        )
    _check_needs(name, measurement.needs, anatomy, partly=measurement.partly)


def _check_needs(name: str, needs: Sequence[str], anatomy: Anatomy, *, partly: bool) -> None:
    for need in needs:
        reason = anatomy.missing.get(need) or ("" if partly else anatomy.partly.get(need))
        if reason:
            raise Refusal(f"{name} cannot be measured: {reason}")


def _source(measurement: Measurement) -> str:
    """Hash what a measurement of one's own does, so that a changed one is not gone on with."""
    functions = (measurement.measure, measurement.finish)
    try:
        return results.digest([inspect.getsource(each) for each in functions if each is not None])
    except OSError:
        return results.digest([each.__code__.co_code for each in functions if each is not None])


def _group(sequences: int) -> int:
    """How many sequences are measured together, a power of two."""
    most = max(SMALLEST_GROUP, min(GROUP, sequences // GROUPS))
    return int(2 ** (most.bit_length() - 1))


def _blank(
    measurement: Measurement,
    model: Model,
    anatomy: Anatomy,
    corpus: Corpus,
    group: int,
    described: Mapping[str, Any],
    command: str,
) -> xr.Dataset:
    """Lay out the dataset of a measurement; what the model does not define is left out."""
    variables = {
        metric.name: (metric, dims)
        for metric, dims in measurement.variables.items()
        if not (anatomy.parallel and metric.name in measurement.sequential)
    }
    settings = {**described, "measurement": measurement.name, **measurement.settings}
    lacking = [anatomy.partly[need] for need in measurement.needs if need in anatomy.partly]
    if lacking:
        settings["layers_left_out"] = "; ".join(lacking)
    if measurement not in MEASUREMENTS.values():
        settings["measurement_sha256"] = _source(measurement)
    coords = {
        **results.layer_coords(model.layers),
        "depth": np.arange(model.layers + 1),
        **measurement.coords(model, anatomy),
    }
    if measurement.grouped:
        groups = len(corpus.tokens) // group
        settings |= {"batch_sequences": group, "sequences_used": groups * group}
        coords["batch"] = np.arange(groups)
    else:
        counted = corpus.counted(int(measurement.settings.get("offsets", 0)))
        coords |= results.sequence_coords(corpus.document, counted=counted)
    dims = {dim for _, dims in variables.values() for dim in dims}
    along = {"relative_depth": "layer", "document": "sequence", results.COUNTED: "sequence"}
    return results.blank(
        variables,
        {name: labels for name, labels in coords.items() if along.get(name, name) in dims},
        results.provenance(settings, command),
        "float64" if measurement.grouped else model.precision,
    )


def _trace(
    model: Model,
    corpus: Corpus,
    rows: slice,
    measurements: Sequence[Measurement],
    known: dict[str, Any],
    wanted: Sequence[answer.Wanted | None] = (),
) -> list[dict[str, Tensor]]:
    """Take measurements on a batch of sequences, in one trace."""
    tokens = torch.from_numpy(corpus.tokens[rows, : corpus.lengths[rows].max()]).to(model.device)
    text = {
        **{name: value for each in measurements for name, value in each.settings.items()},
        "vocabulary": model.vocabulary,
        "lengths": torch.from_numpy(corpus.lengths[rows]).to(model.device),
        "centres": known["centres"],
        "parallel": known["parallel"],
        **queries(corpus, rows, tokens),
    }
    text["counted"] = torch.zeros(tokens.shape, dtype=torch.bool, device=model.device)
    text["counted"][:, text["first"] : text["last"]] = text["compared"]
    needs = sorted({need for measurement in measurements for need in measurement.needs})
    calls = [(each.measure, each.finish, each.final) for each in measurements]
    return _walk(model, tokens, calls, needs, known, text, wanted or [None] * len(calls))


def scan(
    model: Model,
    items: Sequence[Sequence[int]],
    measure: Callable[[capture.Captured, dict[str, Any]], dict[str, Any]],
    *,
    finish: Callable[..., dict[str, Tensor]] | None = None,
    needs: Sequence[str] = (),
    final: bool = False,
    details: Mapping[str, Sequence[NDArray[Any]]] | None = None,
    settings: Mapping[str, Any] | None = None,
    begin: int = 0,
    batch_tokens: int | None = None,
    portions: Portions | None = None,
    dataset: xr.Dataset | None = None,
    lower: str = "fewer texts",
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Capture something of single short texts, a batch of them in each trace.

    Shorter ones are filled up on the right, where no earlier token sees it.

    Parameters
    ----------
    model : Model
        An opened model.
    items : sequence of sequence of int
        Token ids of every text; best in order of length.
    measure, finish, needs, final
        As in `Measurement`; tensors have the item as their last dimension.
    details : mapping of str to sequence of array, optional
        What is known of every text besides its tokens, of any length: it is filled up with 0 and is
        in the text (item, …) by name.
    settings : mapping, optional
        Entries of the text.
    begin : int
        The first item that is wanted.
    batch_tokens : int, optional
        Tokens in a trace.
    portions : Portions, optional
        How much of a batch is run at once.
    dataset : Dataset, optional
        Its variables are those that come out, along their last dimension.
    lower : str
        What would have less pass through the socket of a sandboxed server.

    Yields
    ------
    rows : slice
        Of the items.
    found : dict of str to tensor
        With the item as their last dimension.

    Raises
    ------
    Refusal
        If the model does not allow what is needed, or a text does not fit it.
    """
    anatomy = examine(model, needs)
    _check_needs("this", needs, anatomy, partly=False)
    known = parts(model) | _facts(anatomy)
    widest = max(map(len, items))
    if model.context is not None and widest > model.context:
        raise Refusal(f"a text of {widest} tokens is longer than {model.name} takes")
    together = batch_tokens or tokens_of_text(model)
    parts_of = batches(list(map(len, items)), together, begin, model.bends)
    widths = [(rows.stop - rows.start) * len(items[rows.stop - 1]) for rows in parts_of]
    costs = [
        remote_traffic.of_walk(
            model, needs, width, (rows.stop - rows.start) * ("prediction" in needs)
        )
        for width, rows in zip(widths, parts_of, strict=True)
    ]
    remote_traffic.allow(model, costs, lower)

    def trace(part: slice, _: int | None) -> dict[str, Tensor]:
        lengths = torch.tensor([len(ids) for ids in items[part]], device=model.device)
        text = {
            "lengths": lengths,
            **{name: _pad(values[part], model) for name, values in (details or {}).items()},
            **(settings or {}),
        }
        tokens = _pad([np.asarray(ids) for ids in items[part]], model)
        wanted = None if dataset is None else _wanted(dataset, part.stop - part.start)
        calls = [(measure, finish, final)]
        (found,) = _walk(model, tokens, calls, sorted(needs), known, text, [wanted])
        return found

    def tokens_of(part: slice) -> int:
        return (part.stop - part.start) * max(map(len, items[part]))

    portions = portions or Portions()
    for rows in parts_of:
        yield from portions.each(rows, trace, tokens_of)


def fill(
    run: results.Run,
    model: Model,
    items: Sequence[Sequence[int]],
    measure: Callable[[capture.Captured, dict[str, Any]], dict[str, Any]],
    *,
    progress: Progress | None = None,
    tell: Callable[[str], object] = lambda text: None,
    **options: Any,
) -> xr.Dataset:
    """Fill a run over single short texts from where it stands, and return its finished dataset.

    Parameters
    ----------
    run : Run
        Its variables are those that `measure` gives, or `finish` makes of them.
    model, items, measure, options
        As for `scan`.
    progress : callable, optional
        Called at the start and after every batch.
    tell : callable
        Told when memory ran out and less is run at once from there on.
    """
    portions = Portions(run.lost, tell, "--dtype bfloat16, or another --device")
    with run:
        portions.begin(changes.lowered(run.dataset.attrs))
        if progress is not None:
            progress(run.done, len(items))
        if run.done < len(items):
            options |= {"begin": run.done, "portions": portions, "dataset": run.dataset}
            for rows, found in scan(model, items, measure, **options):
                run.add(rows, {name: tensor.numpy() for name, tensor in found.items()})
                if progress is not None:
                    progress(run.done, len(items))
        return run.finish()


def _walk(
    model: Model,
    tokens: Tensor,
    calls: Sequence[Any],
    needs: Sequence[str],
    known: dict[str, Any],
    text: dict[str, Any],
    wanted: Sequence[answer.Wanted | None],
) -> list[dict[str, Tensor]]:
    """Run measurements on a clean pass; what a server may send is what is wanted.

    Where that is not known, it is no more than all residual streams, the text its last dimension.
    """
    states = (model.layers + 1) * tokens.numel() * model.width
    sizes = [states if one is None else answer.size(one) for one in wanted]
    request = model.asking(sum(sizes))
    with torch.no_grad(), model.traced.trace(tokens, use_cache=False, **request):
        taken = nnsight.save(capture.walk(calls, needs, known, text))
    if not model.request:
        return taken
    answer.plain({"taken": taken}, {"taken": [dict]})
    if len(taken) != len(wanted):
        raise answer.other(f"it is of {len(taken)} measurements")
    for each in taken:
        if not all(isinstance(t, Tensor) and t.shape[-1:] == (len(tokens),) for t in each.values()):
            raise answer.other(f"it is not of {len(tokens)} texts")
    return [
        each if one is None else answer.take(each, one)
        for each, one in zip(taken, wanted, strict=True)
    ]


def _wanted(dataset: xr.Dataset, count: int) -> answer.Wanted:
    """Return the tensors, of so many texts, that become a dataset's variables."""
    return {
        str(name): ((*variable.shape[:-1], count), answer.NUMBERS)
        for name, variable in dataset.data_vars.items()
    }


def _pad(rows: Sequence[NDArray[Any]], model: Model) -> Tensor:
    """Stack arrays of different length, filled up with 0 on the right."""
    return pad_sequence([torch.from_numpy(np.asarray(row)) for row in rows], batch_first=True).to(
        model.device
    )
