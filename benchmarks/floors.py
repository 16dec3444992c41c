"""The matrix products of a sweep alone, in the type of the weights and in its fastest form.

No softmax, norm, activation or readout: no implementation that computes these schedules from shared
prefixes can be faster on the device.
"""

import torch
from torch import Tensor
from torch.nn import Module

from robustness.models.model import Model
from robustness.schedules.plan import RUN
from robustness.sweeps import flops
from robustness.sweeps.preparation import PreparedSweep

LOGITS_AT_ONCE = 2**28


class Products:
    """Makes the products of a prepared sweep's batches.

    Parameters
    ----------
    model : Model
        An opened model.
    prepared : PreparedSweep
        A sweep of whole blocks.
    """

    def __init__(self, model: Model, prepared: PreparedSweep) -> None:
        self.prepared, self.model = prepared, model
        self.plan = prepared.plan(prepared.state_cap)
        self.matrices = [_matrices(block._module) for block in model.blocks]
        self.head = model.head._module.weight.T
        self.stacked = [len(row[2]) for row in self.plan.rows]
        self.made: dict[tuple[int, ...], Tensor] = {}

    def __call__(self) -> None:
        """Make all of them, for every batch."""
        layers = range(self.model.layers)
        for sequences, width in flops.batch_shapes(self.prepared):
            for layer in layers:
                self._block(layer, sequences, width)
            self._read(1, sequences, width)
            for (kind, step, *_), stacked in zip(self.plan.rows, self.stacked, strict=True):
                if kind == RUN:
                    self._block(step, stacked * sequences, width)
                else:
                    self._read(stacked, sequences, width)

    def _block(self, layer: int, sequences: int, width: int) -> None:
        for matrix in self.matrices[layer]:
            torch.mm(self._random(sequences * width, len(matrix)), matrix)
        heads = sequences * self.model.heads
        query = self._random(heads, width, self.model.head_width)
        pattern = self._random(heads, width, width)
        torch.bmm(query, query.transpose(1, 2))
        torch.bmm(pattern, query)

    def _read(self, stacked: int, sequences: int, width: int) -> None:
        rows = stacked * sequences * flops.query_count(self.prepared, width)
        states, columns = self._random(rows, len(self.head)), max(256, LOGITS_AT_ONCE // rows)
        for part in self.head.split(columns, dim=1):
            torch.mm(states, part)

    def _random(self, rows: int, *rest: int) -> Tensor:
        """Return numbers, of which only their number matters; the same ones for fewer rows."""
        made = self.made.get(rest)
        if made is None or len(made) < rows:
            like = self.head
            made = torch.randn((rows, *rest), device=like.device, dtype=like.dtype)
            self.made[rest] = made
        return made[:rows]


def _matrices(block: Module) -> list[Tensor]:
    """Return the matrices of a block, as a product takes them: one row for each of its inputs."""
    found = []
    for part in block.modules():
        weight = getattr(part, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2:
            # GPT-2 keeps its matrices the other way round.
            found.append(weight if type(part).__name__ == "Conv1D" else weight.T)
    return found
