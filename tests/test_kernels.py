"""How many operations the walk of a plan takes: hardly more than its blocks alone.

On a GPU each is a kernel, and with small models their number decides.
"""

from collections import Counter

import pytest
import torch
from families import BLOCKS, DEEP, random_tokens, tiny
from test_execution import corpus
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from robustness.models.opening import open_model
from robustness.sweeps import sweep
from robustness.trace import block_calls, interpreter

SEQUENCES, TOKENS, CAP = 3, 12, 4


class Kernels(TorchDispatchMode):
    """Counts the operations that compute; those that only look at memory otherwise do not."""

    def __init__(self):
        super().__init__()
        self.counts, self.paused = Counter(), False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        known = {storage(one) for one in tree_leaves((args, kwargs)) if torch.is_tensor(one)}
        outs = [storage(one) for one in tree_leaves(made) if torch.is_tensor(one)]
        is_view = outs and known.issuperset(outs) and not function._schema.is_mutable
        if not is_view and not self.paused:
            self.counts[str(function)] += 1
        return made


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


def of_blocks(family):
    """Return how many operations each block of the plain model takes."""
    plain, counted = tiny(family, torch.float32), {}

    def watch(index, forward):
        def call(*args, **kwargs):
            with Kernels() as kernels:
                out = forward(*args, **kwargs)
            counted[index] = kernels.counts.total()
            return out

        return call

    for index, block in enumerate(plain.get_submodule(BLOCKS[family])):
        block.forward = watch(index, block.forward)
    with torch.no_grad():
        plain(random_tokens(CAP * SEQUENCES, TOKENS), use_cache=False)
    return counted


def of_walk(family, monkeypatch):
    """Return how many operations a plan takes besides its readings, and its rows."""
    run, walks = interpreter.run, []

    def watch(rows, clean, read):
        kernels = Kernels()

        def apart(*args):
            kernels.paused = True
            read(*args)
            kernels.paused = False

        with kernels:
            run(rows, clean, apart)
        walks.append((kernels.counts.total(), rows))

    monkeypatch.setattr(interpreter, "run", watch)
    model = open_model(tiny(family, torch.float32))
    sweep(model, corpus(SEQUENCES, TOKENS), ("drop", "swap", "repeat-2"), state_cap=CAP)
    return walks[0]


@pytest.mark.parametrize("family", DEEP)
def test_a_walk_takes_the_operations_of_its_blocks_and_a_tenth_more_at_most(family, monkeypatch):
    blocks = of_blocks(family)
    taken, rows = of_walk(family, monkeypatch)
    alone = sum(blocks[step] for kind, step, *_ in rows if kind == "run")
    assert alone <= taken <= 1.1 * alone


def test_two_operations_too_many_are_found(monkeypatch):
    call = block_calls.call
    monkeypatch.setattr(
        block_calls, "call", lambda block, hidden, given: call(block, hidden * 1 + 0, given)
    )
    taken, rows = of_walk("gpt2", monkeypatch)
    alone = of_blocks("gpt2")[0] * sum(kind == "run" for kind, *_ in rows)
    assert taken > 1.1 * alone
