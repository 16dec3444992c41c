"""Reader of files that torch saves: tensors and plain values, and nothing else.

torch saves values as an archive with a pickle and the bytes of tensors. A pickle can name any
function, and an archive can look different, even like a program, to different readers. So only an
archive of which every byte has one meaning is read, and an interpreter reads the pickle that knows
only the steps that write tensors and plain values. It calls nothing that a pickle names: each of
the few names that it accepts has a function here, which checks the arguments.
"""

import math
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustness.ndif.archive import Archive
from robustness.ndif.limits import Unreadable, check_size
from robustness.ndif.plain_values import DEEPEST, MOST_VALUES, as_key, check_plain

STORAGES = {
    f"{kind}Storage": dtype
    for kind, dtype in {
        "Float": torch.float32, "Double": torch.float64,
        "Half": torch.float16, "BFloat16": torch.bfloat16,
        "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
        "Int": torch.int32, "Long": torch.int64, "Short": torch.int16,
        "Byte": torch.uint8, "Char": torch.int8, "Bool": torch.bool,
    }.items()
}  # fmt: skip
"""Types of tensors, by torch's name for the class of their storage."""


def load(content: bytes, most: float) -> Any:
    """Read values that torch has saved.

    Parameters
    ----------
    content : bytes
        An archive.
    most : float
        Maximum number of bytes of the archive, and of all its tensors together.

    Raises
    ------
    Unreadable
        If it holds more than tensors and plain values. A damaged one may raise any error of
        `pickletools`, which is caught where an answer is received.
    """
    check_size(len(content), most)
    reader = _Reader(Archive(content), most)
    value = reader.run()
    check_plain(value)
    return value


@dataclass(frozen=True)
class _Name:
    """A function or class that a pickle names."""

    module: str
    name: str


@dataclass(frozen=True, eq=False)
class _Storage:
    """A storage: the numbers, of one type, that tensors are views of."""

    key: str
    """Name of its file in the archive."""
    numbers: Tensor
    """All its numbers, in one dimension."""


class _Reader:
    """Interpreter of a pickle: a stack of values, the stacks below marks, and a memo."""

    def __init__(self, archive: Archive, most: float) -> None:
        self._archive, self._most = archive, most
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, _Storage] = {}
        self._size = 0

    def run(self) -> Any:
        text = self._archive.read("data.pkl")
        for count, (opcode, argument, place) in enumerate(pickletools.genops(text)):
            if count > MOST_VALUES:
                raise Unreadable(f"it has more than {MOST_VALUES} values: save tensors instead")
            if opcode.name == "STOP":
                if len(self._stack) != 1 or self._below or place != len(text) - 1:
                    break
                return self._stack[0]
            self._step(opcode.name, argument)
        raise Unreadable("its pickle ends in the middle")

    def _step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            # No type of numbers holds a larger integer.
            if isinstance(argument, int) and not -(2**63) <= argument < 2**64:
                raise Unreadable("it holds a number that is too large")
            self._stack.append(argument)
        elif name in _MAKERS:
            self._stack.append(_MAKERS[name]())
        elif name in _TUPLES:
            members = [self._pop() for _ in range(_TUPLES[name])]
            self._stack.append(tuple(reversed(members)))
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in {"PROTO", "FRAME"}:
            raise Unreadable(f"its pickle does {name}, which makes no tensor or plain value")

    def _pop(self) -> Any:
        if not self._stack:
            raise Unreadable("its pickle takes more than there is")
        return self._stack.pop()

    def _last(self) -> Any:
        if not self._stack:
            raise Unreadable("its pickle takes more than there is")
        return self._stack[-1]

    def _mark(self, _: object) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        if not self._below:
            raise Unreadable("its pickle takes more than there is")
        values, self._stack = self._stack, self._below.pop()
        return values

    def _put(self, place: int | None) -> None:
        self._memo[len(self._memo) if place is None else place] = self._last()

    def _get(self, place: int | None) -> None:
        if place not in self._memo:
            raise Unreadable("its pickle takes more than there is")
        self._stack.append(self._memo[place])

    def _tuple(self, _: object) -> None:
        # Popped first: it replaces the stack that the tuple is put on.
        values = tuple(self._since_mark())
        self._stack.append(values)

    def _frozenset(self, _: object) -> None:
        values = self._since_mark()
        self._stack.append(frozenset(map(as_key, values)))

    def _add(self, kinds: tuple[type, ...], values: list[Any]) -> None:
        """Add values to the container on top; a dictionary takes keys and values in turn."""
        into = self._last()
        if type(into) not in kinds or (len(values) % 2 and isinstance(into, dict)):
            raise Unreadable("its pickle adds to what is no container")
        if isinstance(into, dict):
            into.update(zip(map(as_key, values[::2]), values[1::2], strict=True))
        elif isinstance(into, set):
            into.update(map(as_key, values))
        else:
            into.extend(values)

    def _add_one(self, _: object) -> None:
        value = self._pop()
        self._add((list,), [value])

    def _add_many(self, _: object) -> None:
        self._add((list,), self._since_mark())

    def _add_to_set(self, _: object) -> None:
        self._add((set,), self._since_mark())

    def _set_one(self, _: object) -> None:
        value, key = self._pop(), self._pop()
        self._add((dict, OrderedDict), [key, value])

    def _set_many(self, _: object) -> None:
        self._add((dict, OrderedDict), self._since_mark())

    def _name(self, argument: Any) -> None:
        if argument is None:
            name, module = self._pop(), self._pop()
        else:
            module, _, name = argument.partition(" ")
        if not isinstance(module, str) or not isinstance(name, str):
            raise Unreadable("its pickle names what is no name")
        # Refused before it is called, so that the message can name it.
        if (module, name) not in _MADE and not (module == "torch" and name in STORAGES):
            raise Unreadable(f"it holds {module:.60}.{name:.60}, which is no tensor or plain value")
        self._stack.append(_Name(module, name))

    def _call(self, _: object) -> None:
        arguments, name = self._pop(), self._pop()
        if not isinstance(name, _Name) or type(arguments) is not tuple:
            raise Unreadable("its pickle calls what cannot be called")
        make = _MADE.get((name.module, name.name))
        if make is None:
            raise Unreadable(f"it makes a {name.name} by itself")
        self._stack.append(make(self, *arguments))

    def _storage(self, _: object) -> None:
        """Push a storage, whose bytes are read the first time."""
        kind, name, key, _, count = self._five(self._pop())
        storage = self._storages.get(key)
        dtype = STORAGES[name]
        if storage is None:
            raw = self._archive.read(f"data/{key}")
            if len(raw) != count * dtype.itemsize:
                raise Unreadable(f"a tensor has {len(raw)} bytes where it says {count} numbers")
            storage = self._storages[key] = _Storage(key, _numbers(raw, dtype))
        if kind != "storage" or storage.numbers.dtype != dtype or len(storage.numbers) != count:
            raise Unreadable("two tensors read the same bytes as different numbers")
        self._stack.append(storage)

    @staticmethod
    def _five(reference: Any) -> tuple[str, str, str, str, int]:
        """Return the five members of a reference to a storage, once their types are checked."""
        if type(reference) is not tuple or len(reference) != 5:
            raise Unreadable("it refers to what is not in it")
        kind, name, key, place, count = reference
        texts = type(kind) is type(key) is type(place) is str
        named = isinstance(name, _Name) and name.name in STORAGES
        if not texts or not named or type(count) is not int or not key.isdecimal():
            raise Unreadable("it refers to what is not in it")
        return kind, name.name, key, place, count

    def _tensor(self, *arguments: Any) -> Tensor:
        """Return a tensor as a view of its storage, if it reaches nowhere beyond it."""
        if not 6 <= len(arguments) <= 7 or not isinstance(arguments[0], _Storage):
            raise Unreadable("a tensor is not made as torch makes them")
        (storage, offset, shape, stride), more = arguments[:4], arguments[5:]
        if not isinstance(shape, tuple) or not isinstance(stride, tuple) or any(more):
            raise Unreadable("a tensor is not made as torch makes them")
        whole = [offset, *shape, *stride]
        if any(type(number) is not int or not 0 <= number < 2**62 for number in whole):
            raise Unreadable("a tensor has a shape that is none")
        if len(shape) != len(stride) or len(shape) > DEEPEST:
            raise Unreadable("a tensor has a shape that is none")
        count = math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if count and last >= len(storage.numbers):
            raise Unreadable("a tensor reaches beyond its bytes")
        # Strides of 0 repeat numbers: a tensor may be larger than its storage.
        self._size += count * storage.numbers.itemsize
        check_size(self._size, self._most)
        return torch.as_strided(storage.numbers, shape, stride, offset if count else 0)


def _numbers(raw: bytes, dtype: torch.dtype) -> Tensor:
    """Return bytes as numbers, in memory of their own."""
    if not raw:
        return torch.empty(0, dtype=dtype)
    single = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    if dtype is torch.bool and single.max() > 1:
        raise Unreadable("a truth value is neither true nor false")
    # `frombuffer` may begin anywhere in memory; a clone is aligned as torch aligns tensors.
    return single.clone().view(dtype)


def _ordered(_: _Reader, *arguments: Any) -> object:
    if arguments:
        raise Unreadable("a dictionary is not made as torch makes them")
    return OrderedDict()


def _set(_: _Reader, *arguments: Any) -> object:
    if len(arguments) != 1 or type(arguments[0]) is not list:
        raise Unreadable("a set is not made as torch makes them")
    return set(map(as_key, arguments[0]))


def _bytes(_: _Reader, *arguments: Any) -> object:
    if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] != "latin1":
        raise Unreadable("bytes are not made as torch makes them")
    return arguments[0].encode("latin1")


def _shape(_: _Reader, *arguments: Any) -> object:
    (numbers,) = arguments if len(arguments) == 1 else (None,)
    if type(numbers) is not tuple or not all(type(number) is int for number in numbers):
        raise Unreadable("a shape is not made as torch makes them")
    return torch.Size(numbers)


def _status(_: _Reader, *arguments: Any) -> object:
    if len(arguments) != 1 or type(arguments[0]) is not str:
        raise Unreadable("a status is none")
    return arguments[0]


_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
"""Steps that push their argument."""

_MAKERS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set,
}  # fmt: skip
"""Steps that push a constant or an empty container, and what makes it."""

_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
"""Steps that push a tuple, and the number of values that they pop for it."""

_STEPS: dict[str, Callable[[_Reader, Any], None]] = {
    "MARK": _Reader._mark,
    "TUPLE": _Reader._tuple,
    "FROZENSET": _Reader._frozenset,
    "APPEND": _Reader._add_one,
    "APPENDS": _Reader._add_many,
    "ADDITEMS": _Reader._add_to_set,
    "SETITEM": _Reader._set_one,
    "SETITEMS": _Reader._set_many,
    "BINPUT": _Reader._put,
    "LONG_BINPUT": _Reader._put,
    "MEMOIZE": _Reader._put,
    "BINGET": _Reader._get,
    "LONG_BINGET": _Reader._get,
    "GLOBAL": _Reader._name,
    "STACK_GLOBAL": _Reader._name,
    "REDUCE": _Reader._call,
    "BINPERSID": _Reader._storage,
}
"""All other steps, by the method that takes them."""

_MADE: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered,
    ("__builtin__", "set"): _set,
    ("builtins", "set"): _set,
    ("_codecs", "encode"): _bytes,
    ("torch", "Size"): _shape,
    ("nnsight.schema.response", "Status"): _status,
    ("torch._utils", "_rebuild_tensor_v2"): _Reader._tensor,
}
"""Names that a pickle may call, and the functions that stand for them."""
