"""What a GPU does to the requests of a server that has none: half precision, and memory that ends.

Runs in the server's Python, in the model's process and in those of the sandbox.
"""

from weakref import finalize

import torch
from ndif.services.ray.deployments.modeling import nns
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def autocast(dtype):
    """Return what a server with a GPU runs a request of a model in half precision in, on a CPU."""
    half = dtype in (torch.float16, torch.bfloat16)
    return torch.autocast("cpu", dtype if half else None, enabled=half, cache_enabled=False)


nns.request_dtype = autocast


class Memory(TorchDispatchMode):
    """Memory of a GPU, which holds what is made inside it; weights are there already.

    Views share the memory of their tensor, until the last of them is deleted.
    """

    def __init__(self, room):
        super().__init__()
        self.room, self.most = room, 0
        self._now, self._tensors = 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)}
        for tensor in filter(_is_tensor, tree_leaves(made)):
            self._take(tensor, given)
        return made

    def _take(self, tensor, given):
        address, size = _address(tensor), tensor.untyped_storage().nbytes()
        if not size or (address in given and address not in self._tensors):
            return
        if address not in self._tensors:
            if self._now + size > self.room:
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB. GPU 0 has a "
                    f"total capacity of {self.room / 2**20:.2f} MiB of which "
                    f"{(self.room - self._now) / 2**20:.2f} MiB is free."
                )
            self._now += size
            self.most = max(self.most, self._now)
        self._tensors[address] = self._tensors.get(address, 0) + 1
        finalize(tensor, self._free, address, size)

    def _free(self, address, size):
        self._tensors[address] -= 1
        if not self._tensors[address]:
            del self._tensors[address]
            self._now -= size


def _is_tensor(leaf):
    return isinstance(leaf, torch.Tensor)


def _address(tensor):
    return tensor.untyped_storage().data_ptr()
