"""Answers of servers, bent at random: each is refused or read right, and nothing of it is run.

`STAGES_FUZZ` is the share of the time that is taken, 1 for all.
"""

import io
import os
import pickletools
import random
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
import zstandard

sys.path.insert(0, str(Path(__file__).parents[1]))

from answers import archive, saved, storage, tensor, value

from robustness.errors import Refusal
from robustness.ndif.backend import Requests
from robustness.ndif.limits import Limits
from robustness.ndif.plain_values import check_plain

SECONDS = 120
ROOM = 1e6
SEED = 20261121

HONEST = {
    "measured": {
        "kl": torch.rand(6, 4), "top": torch.arange(48).view(6, 4, 2), "more": [1, (2.5, None)],
        "grows": {("a", 1): True, ("b", "c"): False}, "empty": torch.empty(0), "name": "x" * 300,
        "part": torch.arange(30.0).view(5, 6)[1:, ::2],
    }
}  # fmt: skip

OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]


def bend(content: bytes, chance: random.Random) -> bytes:
    """Change a few bytes, leave some out, say some twice, or add steps of a pickle."""
    bent = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        at = chance.randrange(len(bent) + 1)
        length = chance.choice([1, 1, 2, 4, 8, 40])
        what = chance.randrange(5)
        if what == 0:
            bent[at : at + length] = chance.randbytes(length)
        elif what == 1:
            del bent[at : at + length]
        elif what == 2:
            bent[at:at] = bent[at : at + length]
        elif what == 3:
            bent[at:at] = chance.choice(OPCODES)
        elif at < len(bent):
            bent[at] = chance.choice([0, 1, 127, 128, 255, bent[at] ^ (1 << chance.randrange(8))])
    return bytes(bent)


def steps(chance: random.Random) -> bytes:
    """Return steps that could make a tensor, of odd numbers."""
    odd = [-1, 0, 1, 2, 3, 4, 5, 2**31, 2**61, 2**63 - 1, True, 1.5, None, "x", (), (1,)]
    dims = chance.randrange(4)
    shape, stride = (tuple(chance.choice(odd) for _ in range(dims)) for _ in range(2))
    kind = chance.choice(["FloatStorage", "BoolStorage", "ByteStorage", "QInt8Storage", "Size"])
    of = storage(chance.choice(odd), kind, chance.choice(["0", "1", "-1", 0]))
    offset = chance.choice(odd)
    made = tensor(offset, shape, stride, of if chance.random() < 0.5 else None)
    return b"}" + value("found") + made + b"s"


def inside(content: bytes, chance: random.Random) -> bytes:
    """Bend one file of an archive, whose sums are right again."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        files = {info.filename.partition("/")[2]: file.read(info) for info in file.infolist()}
    name = chance.choice(["data.pkl", "data.pkl", "data.pkl", *files])
    return archive(b"", files=files | {name: bend(files[name], chance)})


def same(found: object, expected: object) -> bool:
    if isinstance(expected, torch.Tensor):
        return isinstance(found, torch.Tensor) and torch.equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[k], expected[k]) for k in found)
    return found == expected


@pytest.fixture
def requests() -> Requests:
    return Requests("model", "http://127.0.0.1:1", "key", limits=Limits(answer=ROOM))


@pytest.mark.slow
def test_a_bent_answer_is_refused_or_right(requests, monkeypatch, tmp_path):
    """Damage from outside is found by sums; what has right sums is plain, and small."""
    monkeypatch.chdir(tmp_path)
    # A `Requests` is asked as a trace asks it, with bytes in the place of the way there.
    monkeypatch.setattr(Requests, "_run", lambda self, content: content)
    chance = random.Random(SEED)
    contents = [saved(HONEST, protocol) for protocol in (2, 3, 4, 5)]
    packed = [zstandard.ZstdCompressor().compress(content) for content in contents]
    end = time.monotonic() + max(2.0, SECONDS * float(os.environ.get("STAGES_FUZZ", "0.02")))
    counts = {"right": 0, "plain": 0, "refused": 0}
    tracemalloc.start()
    try:
        while time.monotonic() < end:
            way = chance.randrange(4)
            if way == 0:
                content = bend(chance.choice(packed), chance)
            elif way == 1:
                content = zstandard.ZstdCompressor().compress(bend(chance.choice(contents), chance))
            elif way == 2:
                bent = inside(chance.choice(contents), chance)
                content = zstandard.ZstdCompressor().compress(bent)
            else:
                content = zstandard.ZstdCompressor().compress(archive(steps(chance)))
            try:
                found = requests._ask(content)
            except Refusal as refusal:
                counts["refused"] += 1
                assert len(str(refusal).splitlines()) == 1 and str(refusal).isprintable()
                continue
            assert isinstance(found, dict)
            check_plain(found)
            counts["right" if same(found, HONEST) else "plain"] += 1
            # From without, nothing that is changed has the right sums.
            assert same(found, HONEST) or way > 1
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert counts["refused"] and not os.listdir()
    assert most < 64 * ROOM
    sys.stdout.write(f"{counts}, {most / 1e6:.0f} MB\n")
