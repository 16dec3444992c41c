"""Loss of next tokens, in training and on held-out text."""

from typing import Any

import torch
from torch import Tensor

from recipes.training.settings import Pretraining
from recipes.training.text import Texts


def next_token_loss(model: Any, tokens: Tensor, bfloat16: bool) -> Tensor:
    """Return the mean loss of next tokens, in nats.

    Parameters
    ----------
    model : Module
        Causal language model of transformers.
    tokens : Tensor
        Sequences, int64 of shape (sequence, token).
    bfloat16 : bool
        Whether products are computed in bfloat16.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = model(input_ids=tokens, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten()
    )


def held_out_loss(model: Any, data: Texts, settings: Pretraining) -> list[float]:
    """Return the mean loss on the held-out windows of each source, in nats per token."""
    losses = []
    for source in range(len(data.names)):
        windows = data.windows(source, settings.context)
        with torch.no_grad():
            total: Any = 0
            for batch in windows.split(settings.batch):
                total = total + next_token_loss(model, batch, bfloat16=False) * len(batch)
        losses.append(float(total / len(windows)))
    return losses
