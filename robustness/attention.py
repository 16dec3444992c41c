"""Where attention looks: weight by distance, weight on the first token, and how spread out it is.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from typing import Any

import torch
from torch import Tensor

from robustness import kernels


def weights(queries: Tensor, keys: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Attention weights, softmax(q · k scaling) over the keys that a query may see.

    Parameters
    ----------
    queries : tensor of shape (sequence, head, query, feature)
        As they are compared with keys: after rotary embeddings.
    keys : tensor of shape (sequence, group, key, feature)
        A group of heads shares its keys (grouped-query attention).
    mask : tensor of shape (1 or sequence, 1 or head, query, key), optional
        True where a key is seen, or what is added to the scores; without one, keys up to the query.
    scaling : float, optional
        One over the root of the features without it.

    Returns
    -------
    tensor of shape (sequence, head, query, key)
        In float32, or wider if the queries are.
    """
    queries, keys = kernels.precise(queries), kernels.precise(keys)
    scale = queries.shape[-1] ** -0.5 if scaling is None else scaling
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
    # Not under a server's autocast, which would round the factors.
    with torch.autocast(queries.device.type, enabled=False):
        scores = queries @ keys.transpose(-1, -2) * scale
    if mask is None:
        shape = scores.shape[-2:]
        mask = torch.ones(shape, dtype=torch.bool, device=scores.device).tril(shape[1] - shape[0])
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    else:
        scores = scores + mask
    return scores.softmax(-1)


def profile(captured: dict[str, Any], text: dict[str, Any]) -> dict[str, Tensor]:
    """Reduce a pattern to what its queries have in common, over those with enough tokens before.

    Queries are those from `offsets` + 1 on, so that every offset is there for each of them and none
    of the offsets is the first token.

    Parameters
    ----------
    captured : dict
        `pattern` (sequence, head, query, key).
    text : dict
        `offsets`, the largest offset; `lengths` (sequence).

    Returns
    -------
    dict of str to tensor
        `profile` (head, offset, sequence), the mean weight on the token that far back, 0 being the
        query's own; `first_token` (head, sequence), the mean weight on the first; `entropy` (head,
        sequence) of the weights, in nats.
    """
    pattern, first = captured["pattern"], text["offsets"] + 1
    length = pattern.shape[-1]
    rows = pattern[:, :, first:]
    real = torch.arange(first, length, device=pattern.device) < text["lengths"][:, None]

    def mean(values: Tensor) -> Tensor:
        return (values * real[:, None]).sum(-1) / real.sum(-1)[:, None]

    back = [
        mean(pattern.diagonal(-offset, -2, -1)[..., first - offset :]) for offset in range(first)
    ]
    return {
        "profile": torch.stack(back).permute(2, 0, 1),
        "first_token": mean(rows[..., 0]).T,
        "entropy": mean(torch.special.entr(rows).sum(-1)).T,
    }
