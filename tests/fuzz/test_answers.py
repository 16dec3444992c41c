"""Answers of servers, bent at random: each is refused or read right, and nothing of it is run.

`STAGES_FUZZ` is the share of the time that is taken, 1 for all.
"""

import io
import json
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
from robustness.ndif import jobs, transport
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


MESSAGES = (
    {"id": "*", "status": "QUEUED", "description": "Added to Queue at position 3.", "meta": None},
    {"id": "*", "status": "RUNNING", "description": "Your job has started running."},
    {"id": "*", "status": "COMPLETED", "data": "http://127.0.0.1:9/x.pt?Signature=se-cret",
     "meta": {"runtime": 1.5, "max_mem_by_gpu": {"0": 10}, "max_mem_pct_by_gpu": {"0": 3.5}}},
    {"id": "*", "status": "ERROR", "description": "Traceback (most recent call last):\n  x\nE: 1"},
    {"id": "*", "status": "ERROR", "description": "Replica was evicted. Please try again later."},
)  # fmt: skip

ODD = [None, True, -1, 10**30, 1e308, [], {}, "", "\x1b[2J", "\ud800", "file:///etc/passwd", "../x",
       "http://[x", "COMPLETED", "LOG", "key", {"0": "x"}, [[[[]]]], "x" * 50_000]  # fmt: skip


def odd(message: dict[str, object], chance: random.Random) -> bytes:
    """Return a message with another value somewhere, or with its bytes bent."""
    if chance.random() < 0.5:
        return bend(json.dumps(message).encode(), chance)
    return json.dumps(message | {chance.choice(list(message)): chance.choice(ODD)}).encode()


def test_a_bent_message_is_a_line_or_none(requests, monkeypatch):
    """Five hundred messages about jobs: each is understood, or refused in a line that is safe."""
    chance = random.Random(SEED)
    packed = zstandard.ZstdCompressor().compress(saved(HONEST))
    bent = b""
    asked = []

    def fetch(client: object, method: str, url: str, *_: object, **__: object) -> object:
        name = url.rpartition("/")[2]
        assert method == "POST" or url.startswith("http")
        if method == "POST":
            return 200, "", json.dumps({"id": "a1", "status": "RECEIVED"}).encode()
        if not url.startswith("http://127.0.0.1:1/response/"):
            return 200, "", packed
        asked.append(url)
        # What is understood is followed by the end of the job.
        last = json.dumps({"id": name, "status": "ERROR", "description": "over"}).encode()
        return 200, "", last if len(asked) > 1 else bent.replace(b'"*"', b'"a1"')

    monkeypatch.setattr(jobs, "fetch", fetch)
    monkeypatch.setattr(transport, "_is_here", lambda host: False)
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    told: list[str] = []
    requests.notify = told.append
    ends = {"result": 0, "over": 0, "refused": 0}
    for _ in range(500):
        bent = odd(chance.choice(MESSAGES), chance)
        asked.clear()
        try:
            assert same(requests._ask(b"trace"), HONEST)
            ends["result"] += 1
            continue
        except Refusal as refusal:
            told.append(str(refusal))
            ends["over" if told[-1].endswith("could not do it: over") else "refused"] += 1
    for text in told:
        assert text.isprintable() and "se-cret" not in text and len(text) < 700
    for report in requests.reports:
        assert report.seconds is None or 0 <= report.seconds < 1e19
    assert min(ends.values()) > 10, ends
