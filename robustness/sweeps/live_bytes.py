"""Bytes of the tensors that exist at once while something runs."""

from typing import Any
from weakref import finalize

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside it and are still in use.

    Views share the memory of their tensor, which counts once, until the last of them is deleted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        """Largest number of bytes so far."""
        self._now = 0
        self._tensors: dict[int, int] = {}
        """Number of tensors in use, by the address of their memory."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)}
        for tensor in filter(_is_tensor, tree_leaves(made)):
            self._count(tensor, given)
        return made

    def _count(self, tensor: Tensor, given: set[int]) -> None:
        address, size = _address(tensor), tensor.untyped_storage().nbytes()
        # A view of memory from before the count, such as a weight, takes nothing more.
        if not size or (address in given and address not in self._tensors):
            return
        if address not in self._tensors:
            self._now += size
            self.most = max(self.most, self._now)
        self._tensors[address] = self._tensors.get(address, 0) + 1
        # Torch has no hook for freed memory on a CPU, but a tensor's finalizer runs just then.
        finalize(tensor, self._drop, address, size)

    def _drop(self, address: int, size: int) -> None:
        self._tensors[address] -= 1
        # The allocator may hand out the same address again, so nothing may be left of it.
        if not self._tensors[address]:
            del self._tensors[address]
            self._now -= size


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
