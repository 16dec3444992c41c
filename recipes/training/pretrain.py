"""Training a small decoder from scratch, as the built-in models were."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import xarray as xr
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig

from recipes.training.card import card, prose
from recipes.training.ngram import trigram_loss, unigram_loss
from recipes.training.state import CHECKPOINT, Log, keep, read_made_of, restore
from recipes.training.text import Texts, encode, read, share
from recipes.training.tokenizer import check, hash_of, size_of, train_tokenizer
from robustness.errors import Refusal, first_line
from robustness.files import manifest
from robustness.files.atomic import remove_leftovers
from robustness.files.directory import WRITING, check_name, unwritable, write_into
from robustness.files.directory import clear as clear_directory
from robustness.files.lock import Lock
from robustness.files.manifest import Manifest
from robustness.files.netcdf import load, save
from robustness.files.provenance import file_attributes
from robustness.runs.out_of_memory import is_out_of_memory
from robustness.text.settings import SHORTEST_SEQUENCE

ARCHITECTURES = ("gpt2", "gpt_neox")
"""Sequential blocks with learned positions; parallel blocks with rotary positions."""

KIND, LOG = "pretraining", "pretraining.nc"
"""What the mark of a directory with a trained model says, and the name of its log."""

Progress = Callable[[int, int, float, float], None]
"""Told the step, the steps in all, the loss in nats per token, and tokens per second."""


@dataclass(frozen=True)
class Pretraining:
    """What is trained and how; equal settings on one machine give equal losses."""

    architecture: str = "gpt2"
    """One of `ARCHITECTURES`."""
    layers: int = 12
    width: int = 128
    heads: int = 4
    context: int = 256
    """Tokens in a sequence, the leading BOS included."""
    vocabulary: int = 2048
    tokens: int = 12_000_000
    """Tokens seen in all."""
    batch: int = 16
    """Sequences in a step."""
    learning_rate: float = 2e-3
    """The highest, reached after the warm-up; a cosine brings it to a tenth."""
    warmup: int = 150
    """Steps of the warm-up."""
    weight_decay: float = 0.1
    """On matrices alone."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    held_out: float = 0.03
    """Share of the documents of each source that is never trained on."""
    seed: int = 0
    bfloat16: bool = True
    """Whether products are computed in bfloat16; weights and sums stay float32."""
    compile: bool = False
    """Whether torch compiles the model first; needs a C++ compiler."""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise Refusal(
                f"no architecture {self.architecture!r}; there are: {', '.join(ARCHITECTURES)}"
            )
        whole = {"layers": 1, "width": 1, "heads": 1, "batch": 1, "warmup": 1, "tokens": 1}
        for name, least in (
            whole | {"context": SHORTEST_SEQUENCE, "vocabulary": 257, "seed": 0}
        ).items():
            if getattr(self, name) < least:
                raise Refusal(f"{name} must be {least} or more, not {getattr(self, name)}")
        if self.width % self.heads:
            raise Refusal(f"a width of {self.width} does not divide among {self.heads} heads")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                value = getattr(self, name)
                raise Refusal(f"the {name.replace('_', ' ')} must be above 0 and finite: {value}")
        if not 0 <= self.weight_decay < math.inf or not 0 < self.held_out < 1:
            raise Refusal("the weight decay must be 0 or more, the share held out between 0 and 1")
        if self.tokens < self.batch * self.context:
            raise Refusal(
                f"{self.tokens} tokens are fewer than one step of {self.batch} × {self.context}: "
                "raise --tokens, or lower --batch or --context"
            )

    @property
    def steps(self) -> int:
        """Steps of the optimiser."""
        return self.tokens // (self.batch * self.context)

    def rate(self, step: int) -> float:
        """Learning rate at a step, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.55 + 0.45 * math.cos(math.pi * min(1.0, done)))


def pretrain(
    directory: Path,
    sources: Sequence[str | Path],
    *,
    weights: Sequence[float] = (),
    settings: Pretraining | None = None,
    tokenizer: Any = None,
    progress: Progress | None = None,
    notify: Callable[[str], object] = lambda text: None,
    checkpoint_every: int = 400,
) -> xr.Dataset:
    """Train a model and leave it, its tokenizer, its log and its card in a directory.

    An interrupted call, made again, goes on from the last checkpoint; a finished one does nothing.

    Parameters
    ----------
    directory : path
        Where `model.safetensors` (float16), `config.json`, the tokenizer, `pretraining.nc`,
        `README.md` and `stages.json`, which says that they are of this training, go. It is empty,
        or not there, or holds this training; what else is put there then stays as it is.
    sources : sequence of str or path
        Corpora, as `robustness.text.sources.documents` takes them.
    weights : sequence of float
        How often each source is drawn, in any unit; equally without them.
    settings : Pretraining, optional
        What is trained and how.
    tokenizer : optional
        A tokenizer to use; without one, one is trained on the same texts.
    progress : callable, optional
        Called after every step.
    notify : callable, optional
        Told where nothing is to be done.
    checkpoint_every : int
        Steps between checkpoints and between measurements of the held-out loss.

    Returns
    -------
    Dataset
        `loss (step)`, `learning_rate (step)`, `held_out_loss (evaluation, source)`, and what n-gram
        models of the same training text lose there: `unigram_loss`, `trigram_loss` (source).

    Raises
    ------
    Refusal
        If a source cannot be read, the directory holds anything else, or the loss diverges.
    """
    settings = settings or Pretraining()
    shares = share(weights, len(sources))
    directory = directory.expanduser()
    check_name(directory)
    if directory.exists() and not directory.is_dir():
        raise Refusal(f"{directory} is a file: choose another place")
    with Lock(directory / CHECKPOINT) as lock:
        with unwritable(directory):
            directory.mkdir(parents=True, exist_ok=True)
            earlier = _find(directory)
            if lock.held:
                remove_leftovers(directory / CHECKPOINT)
                clear_directory(directory)
        texts = [read(source, seed=settings.seed, held_out=settings.held_out) for source in sources]
        given = tokenizer is not None
        if tokenizer is None:
            every = (text for source in texts for text in source.train)
            tokenizer = train_tokenizer(every, settings.vocabulary)
        check("the tokenizer", tokenizer)
        data = encode(texts, shares, settings.context, tokenizer)
        _check_memory(settings, data.vocabulary)
        # What the card needs is looked for before hours of training, not after.
        corpus = prose(tokenizer, settings.context)
        made_of = {name: str(value) for name, value in asdict(settings).items()}
        made_of |= {"sources": ", ".join(data.names), "shares": str(shares.tolist())}
        for number, text in enumerate(texts, 1):
            made_of[f"sha256 of text {number} ({text.name})"] = text.sha256
        made_of["sha256 of the tokenizer"] = hash_of(tokenizer)
        if earlier is not None and _is_finished(directory, earlier, made_of):
            notify(f"{directory} holds this model already: nothing is trained")
            return load(directory / LOG)
        model, log = _train(
            directory, data, settings, tokenizer, made_of, progress, checkpoint_every
        )
        dataset = _log_dataset(log, data, settings, given)

        def write(where: Path) -> None:
            model.save_pretrained(where)
            tokenizer.save_pretrained(where)
            save(dataset, where / LOG)
            (where / "README.md").write_text(card(where, dataset, corpus), encoding="utf-8")

        write_into(directory, write, kind=KIND, made_of=made_of)
        with unwritable(directory):
            (directory / CHECKPOINT).unlink()
        return dataset


def _find(directory: Path) -> Manifest | None:
    """Return the mark of what was trained in a directory, and refuse one with other things."""
    found = manifest.read(directory)
    if found is not None and found.kind != KIND:
        raise Refusal(f"{directory} holds a {found.kind}: choose another directory")
    if os.path.lexists(directory / CHECKPOINT):
        read_made_of(directory / CHECKPOINT)
    elif found is None:
        hidden = (f".{CHECKPOINT}.", WRITING)
        names = (path.name for path in directory.iterdir())
        for name in sorted(name for name in names if not name.startswith(hidden))[:1]:
            raise Refusal(
                f"{directory} holds {name}, and no training of stages: choose another directory"
            )
    return found


def _is_finished(directory: Path, found: Manifest, made_of: dict[str, str]) -> bool:
    """Return whether the model is there, and refuse another one.

    While there is a checkpoint, files of the model may be missing.
    """
    checkpoint = directory / CHECKPOINT
    wrong = [*found.missing(directory), *found.changed(directory)]
    if checkpoint.exists() and wrong:
        return False
    different = manifest.difference(found.made_of, made_of)
    if different:
        raise Refusal(
            f"{directory} holds a model that was trained {different}: choose another directory"
        )
    if wrong:
        raise Refusal(
            f"{directory} holds this model, but {wrong[0]} is not what was written: choose another "
            "directory"
        )
    checkpoint.unlink(missing_ok=True)
    return True


def _check_memory(settings: Pretraining, vocabulary: int) -> None:
    """Refuse a model that cannot be trained in the memory of this machine."""
    weights = 12 * settings.layers * settings.width**2 + vocabulary * settings.width
    # Weights, gradients and two moments; the logits of a step and their gradients.
    needed = 16 * weights + 8 * settings.batch * settings.context * vocabulary
    there = psutil.virtual_memory().total
    if needed > there:
        raise Refusal(
            f"training takes more than {needed / 1e9:,.0f} GB of memory, and there are "
            f"{there / 1e9:,.0f} GB: lower --layers, --width, --batch or --context"
        )


def _train(
    directory: Path,
    data: Texts,
    settings: Pretraining,
    tokenizer: Any,
    made_of: dict[str, str],
    progress: Progress | None,
    checkpoint_every: int,
) -> tuple[Any, Log]:
    """Train from the last checkpoint on; return the model, in float16, and the log."""
    model = build(settings, tokenizer)
    optimizer = _optimizer(model, settings)
    log: Log = {"loss": [], "held_out_loss": [], "evaluated": []}
    start = restore(directory / CHECKPOINT, model, optimizer, log, made_of, settings.steps)
    compiled = torch.compile(model) if settings.compile else model
    for step in range(start, settings.steps):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        with _running(settings):
            tokens = data.batch(
                step, seed=settings.seed, size=settings.batch, context=settings.context
            )
            loss = _step(compiled, optimizer, tokens, settings)
        log["loss"].append(_number(loss, log, step + 1, settings))
        speed = settings.batch * settings.context / (time.perf_counter() - began)
        if (step + 1) % checkpoint_every == 0 or step + 1 == settings.steps:
            held_out = held_out_loss(model, data, settings)
            _number(sum(held_out), log, step + 1, settings)
            log["held_out_loss"].append(held_out)
            log["evaluated"].append(step + 1)
            keep(directory / CHECKPOINT, model, optimizer, log, made_of)
        if progress is not None:
            progress(step + 1, settings.steps, log["loss"][-1], speed)
    model.half()
    if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
        raise Refusal(
            "the model has weights beyond the range of float16, in which it would be written: "
            f"{_milder(settings)}"
        )
    return model, log


def _step(model: Any, optimizer: torch.optim.AdamW, tokens: Tensor, settings: Pretraining) -> float:
    """Take a step and return its loss; none is taken where loss or gradient is no number."""
    loss = _loss(model, tokens, settings.bfloat16)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    if not math.isfinite(norm.item()):
        return math.nan
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _number(loss: float, log: Log, step: int, settings: Pretraining) -> float:
    """Return a loss, and refuse to go on with one that is no number."""
    if not math.isfinite(loss):
        evaluated = log["evaluated"]
        kept = f"; the checkpoint of step {int(evaluated[-1])} stays" if evaluated else ""
        raise Refusal(
            f"the loss is no number at step {step} of {settings.steps}{kept}: {_milder(settings)}"
        )
    return loss


def _milder(settings: Pretraining) -> str:
    return f"lower --learning-rate from {settings.learning_rate}, and choose another directory"


@contextmanager
def _running(settings: Pretraining) -> Iterator[None]:
    """Refuse what this machine cannot compute, where libraries raise errors of their own."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise Refusal(
                "memory ran out: lower --batch, --context, --layers or --width"
            ) from error
        if settings.compile and type(error).__module__.startswith("torch._"):
            raise Refusal(
                f"the model cannot be compiled ({first_line(error)}): leave --compile out"
            ) from error
        raise


def build(settings: Pretraining, tokenizer: Any) -> Any:
    """Return the untrained model, float32, in training mode; its weights depend on the seed."""
    torch.manual_seed(settings.seed)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if settings.architecture == "gpt2":
        config: Any = GPT2Config(
            vocab_size=size_of(tokenizer),
            n_positions=settings.context,
            n_embd=settings.width,
            n_layer=settings.layers,
            n_head=settings.heads,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            **special,
        )
    else:
        config = GPTNeoXConfig(
            vocab_size=size_of(tokenizer),
            max_position_embeddings=settings.context,
            hidden_size=settings.width,
            intermediate_size=4 * settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            use_parallel_residual=True,
            **special,
        )
    return AutoModelForCausalLM.from_config(config).train()


def held_out_loss(model: Any, data: Texts, settings: Pretraining) -> list[float]:
    """Mean loss on the held-out windows of each source, nats per token."""
    losses = []
    for source in range(len(data.names)):
        windows = data.windows(source, settings.context)
        with torch.no_grad():
            parts = [
                _loss(model, part, False) * len(part) for part in windows.split(settings.batch)
            ]
        losses.append(float(sum(parts) / len(windows)))
    return losses


def _loss(model: Any, tokens: Tensor, bfloat16: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = model(input_ids=tokens, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten()
    )


def _optimizer(model: Any, settings: Pretraining) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)


def _log_dataset(log: Log, data: Texts, settings: Pretraining, given: bool) -> xr.Dataset:
    rates = [settings.rate(step) for step in range(len(log["loss"]))]
    nats = {"units": "nat"}
    seen = np.concatenate(data.train)
    held_out = [data.windows(i, settings.context).numpy() for i in range(len(data.names))]
    size = data.vocabulary
    return xr.Dataset(
        {
            "loss": ("step", log["loss"], {**nats, "long_name": "training loss per token"}),
            "learning_rate": ("step", rates, {"units": "1", "long_name": "learning rate"}),
            "held_out_loss": (
                ("evaluation", "source"),
                log["held_out_loss"],
                {**nats, "long_name": "held-out loss per token"},
            ),
            "unigram_loss": (
                "source",
                [unigram_loss(seen, windows, size) for windows in held_out],
                {**nats, "long_name": "held-out loss per token, add-one unigram model"},
            ),
            "trigram_loss": (
                "source",
                [trigram_loss(seen, windows, size) for windows in held_out],
                {**nats, "long_name": "held-out loss per token, interpolated trigram model"},
            ),
        },
        coords={
            "evaluation": [int(step) for step in log["evaluated"]],
            "source": list(data.names),
            "weight": ("source", data.weights),
            "train_tokens": ("source", [len(ids) for ids in data.train]),
            "held_out_tokens": ("source", [len(ids) for ids in data.held_out]),
        },
        attrs=file_attributes(
            {
                key: int(value) if isinstance(value, bool) else value
                for key, value in asdict(settings).items()
            }
            | {"vocabulary": size, "tokenizer": "given" if given else "trained"}
        ),
    )
