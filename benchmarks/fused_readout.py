"""A Triton kernel that makes logits and reduces them in one go, to be timed beside strips.

It is a candidate: `robustness.trace.paired` writes strips of logits to the L2 cache of a GPU and
reads them again, which costs about as much as the product at width 768 and little at width 4,096.
`benchmarks/gpu.py` says on a card whether the kernel gains by sparing that. Without a GPU, it runs
in Triton's interpreter:

    TRITON_INTERPRET=1 python benchmarks/fused_readout.py
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS, FEATURES = 128, 128, 64
"""Sizes of the tiles of states, of the vocabulary and of the width."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def _kernel(
    states,
    weight,
    bias,
    targets,
    largest_out,
    top_out,
    total_out,
    weighted_out,
    target_out,
    rows,
    width,
    vocabulary,
    share,
    scale,
    cap,
    HAS_BIAS: tl.constexpr,
    CAPPED: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """Reduce the logits of some states and a share of the vocabulary."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    begin = tl.program_id(1) * share
    end = tl.minimum(begin + share, vocabulary)
    aim = tl.load(targets + row, mask=row < rows, other=-1)
    largest = tl.full((ROWS,), -3.0e38, tl.float32)
    top = tl.zeros((ROWS,), tl.int64)
    total = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS,), tl.float32)
    target = tl.zeros((ROWS,), tl.float32)
    for first in range(begin, end, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        inside = (column < end)[None, :]
        z = tl.zeros((ROWS, COLUMNS), tl.float32)
        for at in range(0, width, FEATURES):
            feature = at + tl.arange(0, FEATURES)
            a = tl.load(
                states + row[:, None].to(tl.int64) * width + feature[None, :],
                mask=(row < rows)[:, None] & (feature < width)[None, :],
                other=0.0,
            )
            b = tl.load(
                weight + column[None, :].to(tl.int64) * width + feature[:, None],
                mask=inside & (feature < width)[:, None],
                other=0.0,
            )
            # The interpreter has no product of bfloat16 numbers.
            if WIDEN:
                a, b = a.to(tl.float32), b.to(tl.float32)
            z = tl.dot(a, b, z, input_precision="ieee")
        if HAS_BIAS:
            z += tl.load(bias + column, mask=column < end, other=0.0)[None, :].to(tl.float32)
        z = z * scale
        if CAPPED:
            shrunk = tl.exp(-2.0 * tl.abs(z) / cap)
            z = tl.where(z < 0, -cap, cap) * (1.0 - shrunk) / (1.0 + shrunk)
        target += tl.sum(tl.where(inside & (column[None, :] == aim[:, None]), z, 0.0), 1)
        highest = tl.max(tl.where(inside, z, -3.0e38), 1)
        index = tl.argmax(tl.where(inside, z, -3.0e38), 1)
        new = tl.maximum(largest, highest)
        shift = largest - new
        factor = tl.exp(shift)
        below = tl.where(inside, z - new[:, None], 0.0)
        weights = tl.where(inside, tl.exp(below), 0.0)
        weighted = (weighted + total * shift) * factor + tl.sum(weights * below, 1)
        total = total * factor + tl.sum(weights, 1)
        top = tl.where(highest > largest, first + index, top)
        largest = new
    out = tl.program_id(1) * rows + row
    tl.store(largest_out + out, largest, mask=row < rows)
    tl.store(top_out + out, top, mask=row < rows)
    tl.store(total_out + out, total, mask=row < rows)
    tl.store(weighted_out + out, weighted, mask=row < rows)
    tl.store(target_out + out, target, mask=row < rows)


def read(
    states: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    squash: tuple[float, float | None] = (1.0, None),
    shares: int = 8,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log-sum-exp and entropy in nats, top token and target logit of states.

    Parameters
    ----------
    states : tensor of shape (row, width)
        States as the head receives them, of the type of the matrix.
    targets : int64 tensor of shape (row,)
        The tokens that are to be predicted.
    weight : tensor of shape (vocabulary, width)
        Matrix of the head.
    bias : tensor of shape (vocabulary,), optional
        Bias of the head.
    squash : tuple
        Scale and soft cap of the logits, as in `robustness.trace.unembedding`.
    shares : int
        Parts of the vocabulary that are reduced beside each other.
    """
    rows, width = states.shape
    vocabulary, (scale, cap) = len(weight), squash
    share = triton.cdiv(triton.cdiv(vocabulary, shares), COLUMNS) * COLUMNS
    shares = triton.cdiv(vocabulary, share)
    parts = states.new_empty((4, shares, rows), dtype=torch.float32)
    largest, total, weighted, target = parts
    top = targets.new_empty((shares, rows))
    _kernel[(triton.cdiv(rows, ROWS), shares)](
        states.contiguous(),
        weight,
        weight if bias is None else bias,
        targets,
        largest,
        top,
        total,
        weighted,
        target,
        rows,
        width,
        vocabulary,
        share,
        scale,
        1.0 if cap is None else cap,
        HAS_BIAS=bias is not None,
        CAPPED=cap is not None,
        WIDEN=INTERPRETED,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        FEATURES=FEATURES,
    )
    highest, at = largest.max(0)
    shift = largest - highest
    weighted = ((weighted + total * shift) * shift.exp()).sum(0)
    total = (total * shift.exp()).sum(0)
    return (
        highest + total.log(),
        total.log() - weighted / total,
        top.gather(0, at[None])[0],
        target.sum(0),
    )


def check() -> None:
    """Compare the kernel with float64 on ragged shapes, and print the largest errors."""
    device = "cpu" if INTERPRETED else "cuda"
    print(
        "| type | rows | width | vocabulary | bias | cap | log-sum-exp | entropy | target | top |"
    )
    print("|---|--:|--:|--:|---|---|--:|--:|--:|---|")
    for dtype in (torch.bfloat16, torch.float32):
        for rows, width, vocabulary, biased, cap in (
            (130, 96, 1000, False, None),
            (77, 200, 1531, True, None),
            (33, 130, 777, True, 30.0),
            (256, 768, 2048, False, 30.0),
        ):
            generator = torch.Generator().manual_seed(rows)
            states = torch.randn(rows, width, generator=generator).to(dtype)
            weight = (torch.randn(vocabulary, width, generator=generator) * 3 / width**0.5).to(
                dtype
            )
            bias = torch.randn(vocabulary, generator=generator).to(dtype) if biased else None
            targets = torch.randint(0, vocabulary, (rows,), generator=generator)
            exact = states.double() @ weight.double().T
            exact = exact if bias is None else exact + bias.double()
            exact = exact if cap is None else cap * torch.tanh(exact / cap)
            given = [part if part is None else part.to(device) for part in (weight, bias)]
            made = read(states.to(device), targets.to(device), *given, (1.0, cap))
            lse, entropy, top, target = (part.cpu() for part in made)
            expected = torch.distributions.Categorical(logits=exact)
            errors = (
                lse - exact.logsumexp(-1),
                entropy - expected.entropy(),
                target - exact.gather(-1, targets[:, None])[:, 0],
            )
            worst = " | ".join(f"{float(error.abs().max()):.1e}" for error in errors)
            same = "equal" if torch.equal(top, exact.argmax(-1)) else "other"
            name = str(dtype).removeprefix("torch.")
            print(f"| {name} | {rows} | {width} | {vocabulary} | {biased} | {cap} ", end="")
            print(f"| {worst} | {same} |")


if __name__ == "__main__":
    check()
