"""The memory of a device that is not there: how much of it tensors take, and when it runs out."""

from weakref import finalize

import torch
from torch import Tensor

LARGE = 80 * 2**30

MESSAGES = {
    "cuda": (
        torch.OutOfMemoryError,
        "CUDA out of memory. Tried to allocate {:.2f} MiB. GPU 0 has a total capacity of {:.2f} MiB"
        " of which {:.2f} MiB is free.",
    ),
    "mps": (
        RuntimeError,
        "MPS backend out of memory (MPS allocated: 0 bytes, other allocations: 0 bytes, max "
        "allowed: {1:.2f} MiB). Tried to allocate {0:.2f} MiB on private pool. {2:.2f} MiB are "
        "free. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory "
        "allocations (may cause system failure).",
    ),
}
"""Errors and their texts in torch 2.13, by kind of device."""


class Taken:
    """Memory of a tensor, which holds this. Torch exchanges no tensors that are watched."""


class Memory:
    """Counts the bytes of all tensors on the device, and refuses more than there are."""

    def __init__(self) -> None:
        self.begin("cuda", LARGE)

    def begin(self, kind: str, most: int) -> None:
        """Forget all tensors, and have a number of bytes from now on."""
        self.kind, self.most = kind, most
        self.used = self.peak = 0
        self.refusals = 0
        self.left: list[int] = []
        self._tensors: dict[int, int] = {}

    @property
    def free(self) -> int:
        """Bytes that no tensor takes."""
        return self.most - self.used

    def empty_cache(self) -> None:
        """Note what is used when it is asked for; nothing is kept here."""
        self.left.append(self.used)

    def take(self, held: Tensor) -> "Taken":
        """Count the memory of a tensor until what is returned is gone; views take none."""
        taken = Taken()
        storage = held.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not size:
            return taken
        if address not in self._tensors:
            if size > self.free:
                self.refusals += 1
                error, text = MESSAGES[self.kind]
                raise error(text.format(size / 2**20, self.most / 2**20, self.free / 2**20))
            self.used += size
            self.peak = max(self.peak, self.used)
        self._tensors[address] = self._tensors.get(address, 0) + 1
        finalize(taken, self._give_back, self._tensors, address, size)
        return taken

    def _give_back(self, tensors: dict[int, int], address: int, size: int) -> None:
        # Tensors of an earlier device may outlive it.
        if tensors is not self._tensors:
            return
        tensors[address] -= 1
        if not tensors[address]:
            del tensors[address]
            self.used -= size


MEMORY = Memory()
"""The only one: operations of torch have no place to hand one along."""
