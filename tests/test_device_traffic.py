"""How often numbers cross between host and device: never while a plan runs, a few times a batch.

A copy or a read makes the host wait for the device, and the device for the host.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pretended
import pytest
import torch
from families import BLOCKS, DEEP, LAYERS, random_tokens, tiny
from pretended import BETWEEN, READ, TO_DEVICE, TO_HOST
from test_execution import corpus
from test_metrics import OWN
from test_observation import LOCAL
from tokenizers_for_tests import word_level

from probes import suffix, wic
from robustness.measurements.clean_pass import Reading
from robustness.measurements.observation import observe
from robustness.measurements.short_texts import ShortTexts, scan
from robustness.models.model import Model
from robustness.models.opening import open_model
from robustness.runs.ahead import TokensAhead
from robustness.runs.settings import RunOptions
from robustness.schedules import clean
from robustness.schedules.plan import compile_plan
from robustness.sweeps import sweep
from robustness.tasks.evaluation import score_batch
from robustness.trace import block_calls, capture, interpreter, numerics, readout, transfer

pytestmark = [pytest.mark.slow, pretended.needed]

EVERYTHING = ("drop", "swap", "attention-drop", "mlp-drop", "parallel-2", "repeat-2")

OTHERS = ("gemma2", "granite", "mixtral", "olmoe")

SEQUENCES, TOKENS = 16, 10
"""Numbers of sequences in a batch, and of tokens in each."""


@pytest.fixture
def watched(monkeypatch) -> None:
    """Events while a plan runs have the part `plan`."""
    run = interpreter.run

    def watch(*args):
        with pretended.LOG.during("plan"):
            return run(*args)

    monkeypatch.setattr(interpreter, "run", watch)


@pytest.fixture(params=["cuda", "mps"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def log(kind: str, watched: None) -> Iterator[pretended.Log]:
    with pretended.machine(kind) as log:
        yield log


def opened(family: str, kind: str, **opening: object) -> Model:
    return open_model(tiny(family, torch.float32).to(kind), **opening)


def of_a_batch(log: pretended.Log, run: Callable[[int], object]) -> Counter[str]:
    """Return how many events of each kind a batch has, from runs of two batches and of four."""
    # What is found out about a model once is found out before.
    run(1)
    counts = []
    for batches in (2, 4):
        log.clear()
        run(batches)
        counts.append(log.kinds())
    more = counts[1] - counts[0]
    assert all(count % 2 == 0 for count in more.values())
    return Counter({kind: count // 2 for kind, count in more.items()})


@pytest.mark.parametrize(
    ("family", "kind"),
    [("gpt2", "mps"), *((name, "cuda") for name in (*DEEP, *OTHERS))],
)
def test_nothing_crosses_while_a_plan_runs(family, kind, log, tmp_path):
    model = opened(family, kind)
    out = tmp_path / "sweep.nc"
    sweep(model, corpus(4, TOKENS), EVERYTHING, metrics=OWN, per_token=True, out=out)
    sweep(model, corpus(2, TOKENS), ("drop-pair",))
    assert log.events and not log.within("plan"), log.places()


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_over_two_devices_states_cross_between_them_and_nothing_else_does(
    family, watched, tmp_path
):
    plain, blocks = tiny(family, torch.float32), BLOCKS[family]
    plain.save_pretrained(tmp_path)
    word_level(101).save_pretrained(tmp_path)
    placed = {name: "cuda:0" for name, part in plain.named_modules()
              if not list(part.children()) and not name.startswith(blocks)}  # fmt: skip
    placed |= {f"{blocks}.{layer}": f"cuda:{layer // 2}" for layer in range(LAYERS)}
    text = corpus(4, TOKENS)
    with pretended.machine("cuda", 2) as log:
        model = open_model(tmp_path, device_map=placed, dtype="float32")
        found = sweep(model, text, EVERYTHING)
        kinds = Counter(event.kind for event in log.within("plan"))
    assert kinds.keys() == {BETWEEN}, log.places()
    wanted = sweep(open_model(tmp_path, device="cpu", dtype="float32"), text, EVERYTHING)
    np.testing.assert_allclose(found.kl, wanted.kl, atol=2e-5)


BATCH = Counter({TO_DEVICE: 3, READ: 1})
"""Of every batch: its tokens, their lengths, and a mask that nnsight makes; transformers reads
whether that mask hides anything."""


def test_a_batch_of_a_sweep_is_moved_once_and_its_results_come_back_once(kind, log):
    model = opened("llama", kind)

    def run(batches):
        sweep(model, corpus(batches * SEQUENCES, TOKENS), batch_tokens=SEQUENCES * TOKENS)

    # Numbers and tokens have a type each. Without float64, sums are taken on the host, which needs
    # what is summed: the readouts of the schedules, those of the clean run, and the masks.
    returned = Counter({TO_HOST: 2 if kind == "cuda" else 6})
    assert of_a_batch(log, run) == BATCH + returned


def test_the_tokens_of_a_batch_are_sent_before_the_one_before_it_is_done(kind, log):
    model, text = opened("gpt2", kind), corpus(4 * SEQUENCES, TOKENS)
    log.clear()
    sweep(model, text, batch_tokens=SEQUENCES * TOKENS)
    sent, done = [], []
    for index, event in enumerate(log.events):
        if "tokens_of" in event.place:
            sent.append(index)
        elif event.kind == TO_HOST and event.place.startswith("robustness/trace/transfer"):
            done.append(index)
    assert len(sent) == 4 and len(done) % 4 == 0
    first_of_each = done[:: len(done) // 4]
    assert all(early < late for early, late in zip(sent[1:], first_of_each))
    assert all(late < early for late, early in zip(first_of_each, sent[2:])), "not all at once"


def test_tokens_that_are_sent_ahead_are_those_of_the_text(gpt2):
    text = corpus(10, TOKENS)
    parts = [slice(0, 4), slice(4, 8), slice(8, 10)]
    ahead = TokensAhead(gpt2, text, parts)
    wanted = [parts[0], parts[0], slice(0, 2), slice(2, 4), parts[1], parts[2], parts[1]]
    for rows in wanted:
        assert torch.equal(ahead.take(rows), torch.from_numpy(text.tokens[rows]))


OBSERVED = {
    "lens": {"cuda": {TO_HOST: 1}, "mps": {TO_HOST: 6}},
    "cka": {"cuda": {TO_HOST: 1}, "mps": {TO_HOST: 1}},
    "norms": {"cuda": {TO_HOST: 1}, "mps": {TO_HOST: 4, TO_DEVICE: 1}},
    "similarity": {"cuda": {TO_HOST: 1}, "mps": {TO_HOST: 3, TO_DEVICE: 1}},
    "attention": {"cuda": {TO_HOST: 1}, "mps": {TO_HOST: 1}},
    "all": {"cuda": {TO_HOST: 1}, "mps": {TO_HOST: 12, TO_DEVICE: 2}},
}
"""Events of a batch besides those of `BATCH` and the mask of the tokens that count."""


@pytest.mark.parametrize("name", OBSERVED)
def test_a_batch_of_measurements_comes_back_once_however_many_layers_there_are(name, kind, log):
    model = opened("gpt2", kind)
    names = [each for each in OBSERVED if each != "all"] if name == "all" else [name]
    asked = [LOCAL if each == "attention" else each for each in names]

    def run(batches):
        options = RunOptions(batch_tokens=SEQUENCES * TOKENS)
        observe(model, corpus(batches * SEQUENCES, TOKENS), asked, options)

    masked = Counter({TO_DEVICE: 1})
    assert of_a_batch(log, run) == BATCH + masked + Counter(OBSERVED[name][kind])


def test_a_batch_of_a_probe_comes_back_once(kind, log):
    model = opened("gpt2", kind, tokenizer=word_level(101))
    neurons = torch.arange(3 * LAYERS).to(kind)
    settings = {
        "activation": neurons, "control": neurons, "wanted": neurons[:2], "chunk": 4,
        "of_layer": [(3 * layer, 3 * layer + 3) for layer in range(LAYERS)],
    }  # fmt: skip
    of_suffix = Reading(
        suffix.read_neurons, suffix.read_answer, needs=("neurons", "prediction"), final=True
    )
    of_words = Reading(wic.mean_of_word, final=True)

    def scanned(reading, given):
        def run(batches):
            tokens = random_tokens(batches * SEQUENCES, TOKENS).tolist()
            texts = ShortTexts(tokens, **given(batches))
            options = RunOptions(batch_tokens=SEQUENCES * TOKENS)
            list(scan(model, texts, reading, options=options))

        return of_a_batch(log, run)

    def words(batches):
        return {"details": {"word": [np.ones(TOKENS, np.float32)] * (batches * SEQUENCES)}}

    moved = Counter({TO_DEVICE: 3, READ: 1, TO_HOST: 1})
    assert scanned(of_suffix, lambda _: {"settings": settings}) == moved
    assert scanned(of_words, words) == moved + Counter({TO_DEVICE: 1})


def test_a_batch_of_continuations_comes_back_once(kind, log):
    model = opened("gpt2", kind)
    random = random_tokens(1, 60)[0].tolist()
    requests = [(random[at : at + 7], random[at + 7 : at + 9]) for at in range(0, 50, 10)]
    prepared = SimpleNamespace(model=model, requests=requests, order=range(5), longest=20)
    plan = compile_plan([clean(LAYERS), (0, 2, 1, 3)], clean(LAYERS), cap=8)
    matrix = model.unembedding()
    log.clear()
    score_batch(prepared, slice(0, 5), plan, matrix)
    assert log.kinds() == {TO_DEVICE: 5, READ: 1, TO_HOST: 1}
    assert not log.within("plan")


def item_in_the_walk(patch):
    execute = interpreter.execute

    def checking(step, hidden, *rest):
        assert hidden.abs().max().item() < 1e30
        return execute(step, hidden, *rest)

    patch.setattr(interpreter, "execute", checking)


def copy_in_the_walk(patch):
    call = block_calls.call
    patch.setattr(
        block_calls,
        "call",
        lambda block, hidden, context: call(block, hidden.cpu().to(hidden.device), context),
    )


def list_in_the_walk(patch):
    execute = interpreter.execute

    def reordered(step, hidden, *rest):
        return execute(step, hidden[list(range(len(hidden)))], *rest)

    patch.setattr(interpreter, "execute", reordered)


def mask_in_the_readout(patch):
    compare = readout.compare

    def finite(hidden, clean, *rest):
        hidden[hidden.isnan()] = 0
        return compare(hidden, clean, *rest)

    patch.setattr(readout, "compare", finite)


@pytest.mark.parametrize(
    ("plant", "kinds"),
    [
        (item_in_the_walk, {READ}),
        (copy_in_the_walk, {TO_HOST, TO_DEVICE}),
        (list_in_the_walk, {TO_DEVICE}),
        (mask_in_the_readout, {READ}),
    ],
)
def test_what_crosses_while_a_plan_runs_is_found(plant, kinds, log, kind, monkeypatch):
    model = opened("gpt2", kind)
    plant(monkeypatch)
    sweep(model, corpus(2, TOKENS), ("drop",))
    assert {event.kind for event in log.within("plan")} == kinds
    assert all("robustness/trace/" in event.place for event in log.within("plan"))


def test_an_index_made_for_every_layer_is_found(log, kind, monkeypatch):
    model = opened("gpt2", kind)

    def at_last_token(values, facts):
        return values[torch.arange(len(values)), torch.from_numpy(np.full(len(values), -1))]

    monkeypatch.setattr(capture, "at_last_token", at_last_token)

    def run(batches):
        options = RunOptions(batch_tokens=SEQUENCES * TOKENS)
        observe(model, corpus(batches * SEQUENCES, TOKENS), ["cka"], options)

    assert of_a_batch(log, run)[TO_DEVICE] >= 4 + LAYERS


def test_a_tensor_of_the_cpu_in_the_readout_is_refused(log, kind, monkeypatch):
    model = opened("gpt2", kind)
    start = numerics.start
    monkeypatch.setattr(numerics, "start", lambda hidden: start(torch.zeros(hidden.shape)))
    with pytest.raises(RuntimeError, match="on the same device"):
        sweep(model, corpus(2, TOKENS), ("drop",))


def test_sums_in_float64_are_refused_where_there_is_none(watched, monkeypatch):
    monkeypatch.setattr(transfer, "WITHOUT_FLOAT64", ())
    with pretended.machine("mps"):
        with pytest.raises(TypeError, match="doesn't support float64"):
            sweep(opened("gpt2", "mps"), corpus(2, TOKENS), ("drop",))
    with pretended.machine("cuda"):
        sweep(opened("gpt2", "cuda"), corpus(2, TOKENS), ("drop",))
