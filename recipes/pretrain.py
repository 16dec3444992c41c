"""Training a small decoder from scratch, as the built-in models were."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    PreTrainedTokenizerFast,
)

from recipes.ngram import trigram_loss, unigram_loss
from robustness.corpus import SEPARATOR, documents
from robustness.refusal import Refusal
from robustness.results import provenance, save, write_into, write_whole

ARCHITECTURES = ("gpt2", "gpt_neox")
"""Sequential blocks with learned positions; parallel blocks with rotary positions."""

CHECKPOINT = "checkpoint.safetensors"

Ids = NDArray[np.int64]
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
        if self.width % self.heads:
            raise Refusal(f"a width of {self.width} does not divide among {self.heads} heads")
        if min(self.tokens, self.batch, self.layers, self.warmup) < 1 or self.context < 2:
            raise Refusal("tokens, batch, layers and warm-up must be 1 or more, the context 2")

    @property
    def steps(self) -> int:
        """Steps of the optimiser."""
        return max(1, self.tokens // (self.batch * self.context))

    def rate(self, step: int) -> float:
        """Learning rate at a step, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.55 + 0.45 * math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True, eq=False)
class Texts:
    """The token ids of several sources, each joined into one row, and how often each is drawn."""

    names: tuple[str, ...]
    train: tuple[Ids, ...]
    held_out: tuple[Ids, ...]
    weights: NDArray[np.float64]
    bos: int
    vocabulary: int

    def batch(self, settings: Pretraining, step: int) -> Tensor:
        """Return the sequences of a step, int64 of shape (sequence, token), BOS first.

        A function of the seed and the step alone, so a resumed run draws what it would have drawn.
        """
        random = np.random.default_rng((settings.seed, step))
        width = settings.context - 1
        rows = []
        for source in random.choice(len(self.train), size=settings.batch, p=self.weights):
            ids = self.train[source]
            start = random.integers(0, len(ids) - width + 1)
            rows.append(np.concatenate([[self.bos], ids[start : start + width]]))
        return torch.from_numpy(np.stack(rows))

    def windows(self, source: int, context: int) -> Tensor:
        """Held-out sequences of a source, int64 of shape (sequence, token), BOS first."""
        width = context - 1
        ids = self.held_out[source]
        rows = ids[: len(ids) // width * width].reshape(-1, width)
        return torch.from_numpy(np.concatenate([np.full((len(rows), 1), self.bos), rows], axis=1))


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with one special token, BOS and EOS at once."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=vocabulary, special_tokens=[SEPARATOR], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        unk_token=SEPARATOR,
    )


def split_documents(
    source: str | Path, settings: Pretraining, field: str = "text"
) -> tuple[list[str], list[str]]:
    """Divide the documents of a source into those trained on and those held out, seeded."""
    found = [text for _, text in documents(source, seed=settings.seed, field=field)]
    count = max(1, round(settings.held_out * len(found)))
    if len(found) <= count:
        raise Refusal(f"{source} has {len(found)} document(s): too few to hold any out")
    return found[count:], found[:count]


def encode(
    sources: Sequence[str | Path], weights: Sequence[float], settings: Pretraining, tokenizer: Any
) -> Texts:
    """Encode all sources; documents are joined by EOS."""
    train, held_out = [], []
    for source in sources:
        kept, left = split_documents(source, settings)
        train.append(_join(kept, tokenizer))
        held_out.append(_join(left, tokenizer))
        if len(train[-1]) < settings.context:
            raise Refusal(f"{source} has {len(train[-1])} tokens, fewer than one sequence")
    share = np.asarray(weights, dtype=np.float64)
    return Texts(
        names=tuple(Path(source).name for source in sources),
        train=tuple(train),
        held_out=tuple(held_out),
        weights=share / share.sum(),
        bos=int(tokenizer.bos_token_id),
        vocabulary=len(tokenizer),
    )


def pretrain(
    directory: Path,
    sources: Sequence[str | Path],
    *,
    weights: Sequence[float] = (),
    settings: Pretraining | None = None,
    tokenizer: Any = None,
    progress: Progress | None = None,
    checkpoint_every: int = 400,
) -> xr.Dataset:
    """Train a model and leave it, its tokenizer and its log in a directory.

    An interrupted call, made again, goes on from the last checkpoint.

    Parameters
    ----------
    directory : path
        Where `model.safetensors` (float16), `config.json`, the tokenizer and `pretraining.nc` go.
    sources : sequence of str or path
        Corpora, as `robustness.corpus.documents` takes them.
    weights : sequence of float
        How often each source is drawn, in any unit; equally without them.
    settings : Pretraining, optional
        What is trained and how.
    tokenizer : optional
        A tokenizer to use; without one, one is trained on the same texts.
    progress : callable, optional
        Called after every step.
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
        If a source cannot be read, or the directory holds a checkpoint of other settings.
    """
    settings = settings or Pretraining()
    weights = tuple(weights) or (1.0,) * len(sources)
    if len(weights) != len(sources) or min(weights, default=0) <= 0:
        raise Refusal(f"{len(sources)} source(s) take as many weights above 0, not {weights}")
    directory.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        texts = (text for source in sources for text in split_documents(source, settings)[0])
        tokenizer = train_tokenizer(texts, settings.vocabulary)
    data = encode(sources, weights, settings, tokenizer)
    model = build(settings, tokenizer)
    optimizer = _optimizer(model, settings)
    log: dict[str, list[Any]] = {"loss": [], "held_out_loss": [], "evaluated": []}
    vocabulary = hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
    described = repr((settings, data.names, weights, vocabulary[:12]))
    start = _restore(directory / CHECKPOINT, model, optimizer, log, described)
    compiled = torch.compile(model) if settings.compile else model
    for step in range(start, settings.steps):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        loss = _loss(compiled, data.batch(settings, step), settings.bfloat16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        log["loss"].append(loss.item())
        speed = settings.batch * settings.context / (time.perf_counter() - began)
        if (step + 1) % checkpoint_every == 0 or step + 1 == settings.steps:
            log["held_out_loss"].append(held_out_loss(model, data, settings))
            log["evaluated"].append(step + 1)
            _keep(directory / CHECKPOINT, model, optimizer, log, described)
        if progress is not None:
            progress(step + 1, settings.steps, log["loss"][-1], speed)
    dataset = _log_dataset(log, data, settings)
    model.half()
    write_into(directory, model.save_pretrained)
    write_into(directory, tokenizer.save_pretrained)
    save(dataset, directory / "pretraining.nc")
    (directory / CHECKPOINT).unlink(missing_ok=True)
    return dataset


def build(settings: Pretraining, tokenizer: Any) -> Any:
    """Return the untrained model, float32, in training mode; its weights depend on the seed."""
    torch.manual_seed(settings.seed)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if settings.architecture == "gpt2":
        config: Any = GPT2Config(
            vocab_size=len(tokenizer),
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
            vocab_size=len(tokenizer),
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
        losses.append(float(sum(parts) / max(1, len(windows))))
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


def _keep(
    path: Path, model: Any, optimizer: torch.optim.AdamW, log: dict[str, list[Any]], settings: str
) -> None:
    tensors = {f"log.{name}": torch.tensor(rows, dtype=torch.float64) for name, rows in log.items()}
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    write_whole(path, lambda file: save_file(tensors, file, metadata={"settings": settings}))


def _restore(
    path: Path, model: Any, optimizer: torch.optim.AdamW, log: dict[str, list[Any]], settings: str
) -> int:
    """Load a checkpoint where there is one; return the steps done."""
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        there = file.metadata()["settings"]
        if there != settings:
            raise Refusal(
                f"{path.parent} holds a checkpoint of other settings: {there} there, "
                f"{settings} asked for; remove {path.name} to start again"
            )
        for name, rows in log.items():
            rows[:] = file.get_tensor(f"log.{name}").tolist()
        for name, parameter in model.named_parameters():
            parameter.data.copy_(file.get_tensor(f"weight.{name}"))
            optimizer.state[parameter] = {
                key: file.get_tensor(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")
            }
    return len(log["loss"])


def _join(texts: list[str], tokenizer: Any) -> Ids:
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return np.concatenate([[*ids, tokenizer.eos_token_id] for ids in encoded]).astype(np.int64)


def _log_dataset(log: dict[str, list[Any]], data: Texts, settings: Pretraining) -> xr.Dataset:
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
        attrs=provenance(
            {
                key: int(value) if isinstance(value, bool) else value
                for key, value in asdict(settings).items()
            }
        ),
    )
