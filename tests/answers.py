"""Builds answers of servers, honest ones and others, a step of a pickle at a time."""

import io
import pickle
import struct
import warnings
import zipfile
from typing import Any

import torch

PLAIN = b"\x80\x02"
"""The beginning of a pickle."""


def saved(value: Any, protocol: int = 2) -> bytes:
    """Return what torch saves."""
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_protocol=protocol)
    return buffer.getvalue()


def value(plain: Any) -> bytes:
    """Return the steps of a pickle that make a plain value."""
    return pickle.dumps(plain, 2)[2:-1]


def name(module: str, called: str) -> bytes:
    """Return the step that names something."""
    return f"c{module}\n{called}\n".encode()


def storage(count: Any = 4, kind: str = "FloatStorage", key: Any = "0") -> bytes:
    """Return the steps that refer to the bytes of a tensor."""
    parts = value("storage") + name("torch", kind) + value(key) + value("cpu") + value(count)
    return b"(" + parts + b"tQ"


def tensor(offset: Any = 0, size: Any = (4,), stride: Any = (1,), of: bytes | None = None) -> bytes:
    """Return the steps that make a tensor."""
    made = name("torch._utils", "_rebuild_tensor_v2") + b"(" + (of or storage())
    hooks = name("collections", "OrderedDict") + b")R"
    return made + value(offset) + value(size) + value(stride) + value(False) + hooks + b"tR"


def archive(steps: bytes, **changes: Any) -> bytes:
    """Return an archive with a pickle of these steps and the bytes of one tensor.

    Changes: `files`, more of them by name; `folder`; `change`, called with the file before it ends.
    """
    folder = changes.get("folder", "archive")
    files = {
        "data.pkl": PLAIN + steps + b".",
        "byteorder": b"little",
        "data/0": struct.pack("<4f", 1, 2, 3, 4),
        "version": b"3\n",
    }
    buffer = io.BytesIO(changes.get("before", b""))
    buffer.seek(0, io.SEEK_END)
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as file:
        warnings.simplefilter("ignore")
        for part, content in (files | changes.get("files", {})).items():
            if content is not None:
                file.writestr(f"{folder}/{part}", content, changes.get("method", 0))
        if "change" in changes:
            changes["change"](file)
    return buffer.getvalue()


def program(path: str) -> bytes:
    """Return a program of TorchScript that writes a file as soon as it is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.script(_Writes())
        module.path = path
        buffer = io.BytesIO()
        torch.jit.save(module, buffer)
    return buffer.getvalue()


class _Writes(torch.nn.Module):
    path: str

    def __init__(self) -> None:
        super().__init__()
        self.path = ""

    @torch.jit.export
    def __getstate__(self) -> str:
        return self.path

    @torch.jit.export
    def __setstate__(self, path: str) -> None:
        self.path, self.training = path, False
        torch.save(torch.ones(1), path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def two_faced(hidden: bytes, shown: bytes) -> bytes:
    """Return a file in which torch's reader finds one archive and `zipfile` another.

    The last entry of the shown one has a comment, just before the file's end record, that says
    where the end record of the hidden one is.
    """
    place = hidden.rindex(b"PK\6\6")
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, place, 1)

    def comment(file: zipfile.ZipFile) -> None:
        file.infolist()[-1].comment = locator

    return archive(shown, before=hidden, change=comment)
