"""Text sampled from a model: any amount of text that the model predicts well."""

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
"""Number of documents that are sampled together."""


def sample(
    model: Model,
    tokens: int,
    *,
    document: int = 512,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> list[str]:
    """Sample documents at temperature 1 from the whole distribution, except for EOS.

    A document longer than the model's context is continued from its last half context.

    Parameters
    ----------
    model : Model
        An opened model whose tokenizer has a BOS.
    tokens : int
        Number of tokens in all, rounded up to whole documents.
    document : int
        Number of tokens of a document.
    seed : int
        Seed of the tokens; equal seeds on one machine give equal texts.
    progress : callable, optional
        Function that is called with the numbers of tokens that are done and of all.

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
    # The checkpoint's own settings of generation may say otherwise, so all are given.
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
        sampled = begin[:, :0]
        while sampled.shape[1] < document:
            prompt = torch.cat([begin, sampled[:, -(limit // 2) :]], dim=1)
            room = min(limit - prompt.shape[1], document - sampled.shape[1])
            with torch.no_grad():
                out = net.generate(prompt, max_new_tokens=room, **options)
            sampled = torch.cat([sampled, out[:, prompt.shape[1] :]], dim=1)
        texts += tokenizer.batch_decode(sampled)
        if progress is not None:
            progress(len(texts) * document, count * document)
    return texts


def write(texts: Sequence[str], path: Path, source: str) -> None:
    """Write documents as compressed lines of JSON, each with the name of its source.

    `builtin-sampled` was made by `write(sample(open_model("builtin"), 200_000), …)`.
    """
    lines = []
    for text in texts:
        lines.append(json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n")
    # Without the time, so that equal texts make equal files.
    packed = gzip.compress("".join(lines).encode(), mtime=0)
    write_whole(path, lambda file: file.write_bytes(packed))
