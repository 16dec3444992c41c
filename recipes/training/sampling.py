"""Text sampled from a model: as many windows as one wants, of a text that the model knows."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from robustness.errors import Refusal
from robustness.files.atomic import write_whole
from robustness.models.model import Model

BATCH = 64
"""Documents sampled together."""


def sample(
    model: Model,
    tokens: int,
    *,
    document: int = 512,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> list[str]:
    """Sample documents at temperature 1, from the whole distribution, without end-of-text.

    A document longer than the model's context is continued from its last half context.

    Parameters
    ----------
    model : Model
        An opened model whose tokenizer has a BOS.
    tokens : int
        Tokens wanted in all, rounded up to whole documents.
    document : int
        Tokens of a document.
    seed : int
        Equal seeds on one machine give equal texts.
    progress : callable, optional
        Told how many tokens are done, and how many there will be.

    Returns
    -------
    list of str
        The documents.
    """
    tokenizer, net = model.tokenizer, model.traced._module
    if tokenizer is None or tokenizer.bos_token_id is None:
        raise Refusal(f"{model.name} has no BOS to begin a sampled text with")
    torch.manual_seed(seed)
    count = -(-tokens // document)
    texts: list[str] = []
    options: dict[str, Any] = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "suppress_tokens": [tokenizer.eos_token_id],
        "pad_token_id": tokenizer.eos_token_id,
    }
    limit = model.context or document + 1
    while len(texts) < count:
        rows = min(BATCH, count - len(texts))
        begin = torch.full((rows, 1), tokenizer.bos_token_id, device=model.device)
        found = begin[:, :0]
        while found.shape[1] < document:
            prompt = torch.cat([begin, found[:, -(limit // 2) :]], dim=1)
            room = min(limit - prompt.shape[1], document - found.shape[1])
            with torch.no_grad():
                out = net.generate(prompt, max_new_tokens=room, **options)
            found = torch.cat([found, out[:, prompt.shape[1] :]], dim=1)
        texts += tokenizer.batch_decode(found)
        if progress is not None:
            progress(len(texts) * document, count * document)
    return texts


def write(texts: Sequence[str], path: Path, source: str) -> None:
    """Write documents as lines of JSON, compressed, each marked with what it is.

    `builtin-sampled` was made by `write(sample(open_model("builtin"), 200_000), …)`.
    """
    lines = (json.dumps({"text": text, "source": source}, ensure_ascii=False) for text in texts)
    packed = gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)
    write_whole(path, lambda file: file.write_bytes(packed))
