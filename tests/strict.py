"""Executes a trace as a server does: from the bytes of the request, without this project.

nnsight's own simulation sends the bytes and then runs the original objects. This backend hides
the project's packages, rebuilds the trace from its source and runs that, so that whatever does not
travel fails here.
"""

import contextlib
import importlib.abc
import io
import linecache
import sys
from collections.abc import Iterator
from typing import Any

import torch
from nnsight.ndif import pull_env
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend
from nnsight.tracing.globals import BLOCKS, SOURCES
from nnsight.tracing.tracer import _saves, dec, inc, save
from nnsight.tracing.util import push

HIDDEN = {"robustness", "probes", "recipes", "cli", "tests"}


class _Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r} on the server", name=name)


@contextlib.contextmanager
def _hidden() -> Iterator[None]:
    ours = {name for name in sys.modules if name.partition(".")[0] in HIDDEN}
    saved = {name: sys.modules.pop(name) for name in ours}
    finder = _Hide()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in HIDDEN]:
            del sys.modules[name]
        sys.modules.update(saved)


def execute(blob: bytes, model: Any) -> bytes:
    """Run a trace from its serialised form on a model, and return what it saved, serialised."""
    before = dict(linecache.cache), dict(SOURCES), dict(BLOCKS)
    try:
        with _hidden():
            remote = RequestModel.deserialize(
                blob, model._remoteable_persistent_objects(), compress=True
            )
            inc()
            try:
                remote.execute(remote.info.code)
                ids = _saves()
                local = remote.info.frame.f_locals
                saved = {name: value for name, value in local.items() if id(value) in ids}
            finally:
                dec()
            buffer = io.BytesIO()
            torch.save(saved, buffer)
    finally:
        for current, old in zip((linecache.cache, SOURCES, BLOCKS), before, strict=True):
            current.clear()
            current.update(old)
    return buffer.getvalue()


class StrictBackend(Backend):
    """Runs every trace from its serialised form; `received` counts the bytes that come back."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.received: list[int] = []

    def expecting(self, numbers: int) -> "StrictBackend":
        return self

    def __call__(self, tracer: Any) -> None:
        pull_env()
        frame = tracer.info.frame
        answer = execute(RequestModel.serialize(tracer, True), self.model)
        self.received.append(len(answer))
        result = torch.load(io.BytesIO(answer), weights_only=False)
        for value in result.values():
            save(value)
        push(frame, result)
