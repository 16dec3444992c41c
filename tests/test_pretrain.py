from collections import Counter
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import cli
from recipes.training import Pretraining, pretrain, pretraining
from recipes.training.ngram import trigram_loss, unigram_loss
from recipes.training.settings import TrainingOptions
from recipes.training.state import CHECKPOINT
from recipes.training.text import encode, read, share
from recipes.training.tokenizer import train_tokenizer
from robustness.errors import Refusal
from robustness.models.opening import open_model
from robustness.text.sources import documents

SMALL = {
    "layers": 2, "width": 16, "heads": 2, "context": 24, "vocabulary": 300, "batch": 4,
    "tokens": 4 * 24 * 30, "warmup": 5,
}  # fmt: skip

CARD = pretraining.prose, pretraining.card

READ = read("builtin", seed=0, held_out=0.03)


@pytest.fixture(autouse=True)
def quick_card(monkeypatch):
    """The card, which takes longer than the training of such small models, has tests of its own."""
    monkeypatch.setattr(pretraining, "prose", lambda *_: None)
    monkeypatch.setattr(pretraining, "card", lambda *_: "The card.\n")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer((text for _, text in documents("builtin")), 300)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_a_trained_model_opens_like_any_other_and_has_learnt(tmp_path, tokenizer, architecture):
    settings = Pretraining(architecture=architecture, learning_rate=1e-2, **SMALL)
    log = pretrain(tmp_path, ["builtin"], settings=settings, tokenizer=tokenizer)
    assert log.loss[-5:].mean() < log.loss[0] - 0.3
    xr.testing.assert_equal(log, xr.load_dataset(tmp_path / "pretraining.nc"))
    model = open_model(tmp_path)
    assert model.layers == 2 and model.tokenizer.bos_token_id is not None
    held = encode([READ], share([], 1), 24, tokenizer).windows(0, 24)
    with torch.no_grad():
        logits = model.traced._module(held, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), held[:, 1:].flatten())
    assert float(loss) == pytest.approx(float(log.held_out_loss[-1, 0]), abs=5e-3)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_losses_and_another_does_not(tmp_path, tokenizer):
    runs = [
        pretrain(
            tmp_path / str(i),
            ["builtin"],
            settings=Pretraining(**SMALL, seed=seed),
            tokenizer=tokenizer,
        )
        for i, seed in enumerate((0, 0, 1))
    ]
    assert runs[0].loss.values.tolist() == runs[1].loss.values.tolist()
    assert runs[0].loss.values.tolist() != runs[2].loss.values.tolist()


@pytest.mark.slow
def test_a_stopped_run_goes_on_from_its_checkpoint(tmp_path, tokenizer):
    settings = Pretraining(**SMALL)
    options = TrainingOptions(checkpoint_every=10)
    whole = pretrain(tmp_path / "whole", ["builtin"], settings, options, tokenizer=tokenizer)

    def stop(step: int, *_: object) -> None:
        if step == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped = replace(options, progress=stop)
        pretrain(tmp_path / "cut", ["builtin"], settings, stopped, tokenizer=tokenizer)
    assert (tmp_path / "cut" / CHECKPOINT).exists()
    steps = []
    counting = replace(options, progress=lambda step, *_: steps.append(step))
    resumed = pretrain(tmp_path / "cut", ["builtin"], settings, counting, tokenizer=tokenizer)
    assert steps[0] == 11
    xr.testing.assert_equal(whole, resumed)
    for name in ("model.safetensors", "config.json"):
        left, right = ((tmp_path / run / name).read_bytes() for run in ("whole", "cut"))
        assert left == right


def test_a_checkpoint_of_other_settings_is_refused(tmp_path, tokenizer):
    options = TrainingOptions(checkpoint_every=1, progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path, ["builtin"], Pretraining(**SMALL), options, tokenizer=tokenizer)
    with pytest.raises(Refusal, match="made with seed 0, not 4; choose another directory"):
        pretrain(tmp_path, ["builtin"], Pretraining(**SMALL, seed=4), options, tokenizer=tokenizer)


def test_no_held_out_document_is_trained_on(tokenizer):
    data = encode([READ], share([], 1), 24, tokenizer)
    count = sum(1 for _ in documents("builtin"))
    assert (data.train[0] == data.bos).sum() + (data.held_out[0] == data.bos).sum() == count
    assert (data.held_out[0] == data.bos).sum() == round(0.03 * count)
    left, right = (tokenizer.decode(ids) for ids in (data.train[0], data.held_out[0]))
    for text in right.split("<|endoftext|>"):
        assert not text or text not in left


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(Refusal, match="there are: gpt2, gpt_neox"):
        Pretraining(architecture="rnn")
    with pytest.raises(Refusal, match="does not divide among 5 heads"):
        Pretraining(heads=5)
    with pytest.raises(Refusal, match="1 or more"):
        Pretraining(tokens=0)
    with pytest.raises(Refusal, match="as many weights"):
        pretrain(tmp_path, ["builtin"], weights=[1, 2])


def test_ngram_losses_equal_counting_by_hand():
    random = np.random.default_rng(0)
    train, windows = random.integers(0, 4, 500), random.integers(0, 4, (6, 9))
    counts = Counter(train.tolist())
    by_hand = np.mean([-np.log((counts[t] + 1) / 504) for t in windows[:, 1:].ravel().tolist()])
    assert unigram_loss(train, windows, 4) == pytest.approx(by_hand)
    chain = np.array([0, 1, 2, 3] * 200)
    assert trigram_loss(chain, np.array([[1, 2, 3, 0, 1]]), 4) < 0.05


def test_a_trigram_model_beats_a_unigram_model_where_order_matters(tokenizer):
    text = np.concatenate([tokenizer(t)["input_ids"] for _, t in documents("builtin")])
    train, held = text[:-4800], text[-4800:].reshape(-1, 24)
    size = len(tokenizer)
    assert trigram_loss(train, held, size) < unigram_loss(train, held, size) - 0.5
    shuffled = np.random.default_rng(0).permutation(held.ravel()).reshape(held.shape)
    assert trigram_loss(train, shuffled, size) > unigram_loss(train, shuffled, size) - 0.05


@pytest.mark.slow
def test_the_command_trains_and_writes_a_card(run, stories, monkeypatch):
    small = "--layers 2 --width 16 --heads 2 --context 24 --vocabulary 300 --batch 4 --tokens 2000"
    prose, card = CARD
    monkeypatch.setattr(pretraining, "prose", lambda *settings: prose(*settings).take(4))
    monkeypatch.setattr(pretraining, "card", card)
    code, out, err = run("pretrain", "out", "--data", stories, *small.split())
    assert (code, out) == (0, "out\n"), err
    assert open_model("out").layers == 2
    assert "unigram" in Path("out/README.md").read_text()


def test_the_shell_calls_the_command_line_by_its_name():
    (entry,) = metadata.entry_points(group="console_scripts", name="stages")
    assert entry.load() is cli.main
