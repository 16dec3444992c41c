"""Rows of the GPU benchmark: kept in one NetCDF file, and printed as Markdown tables."""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import xarray as xr
from card import published_peak
from shapes import SHAPES

from robustness.files.netcdf import load, save_with_lock
from robustness.files.provenance import file_attributes

PEAK, READOUT = "peak", "readout"
"""Names in the place of a shape: a large product, and readouts of a head."""

READOUT_WAYS = ("clean", "paired", "fused", "product")
"""Loss and entropy alone, with KL besides, the candidate of one kernel, and the product alone."""

MILLION = 1e6

AUTHORS_MINUTES = 16 * 60
"""Minutes that the paper's authors give for a million tokens: 8 hours for each intervention."""

BAR = {2048: 3.13, 4096: 6.11, 8192: 12.30, 16384: 24.09}
"""Milliseconds for loss and entropy of so many tokens, width 4,096 and 131,072 tokens of
vocabulary, bfloat16, on an H100: the README of Liger-Kernel."""

EXPECTED = {
    "gpt2-small": (16, 11, 6),
    "pythia-6.9b": (733, 692, 632),
    "llama-3.1-8b": (991, 846, 739),
    "gemma-2-9b": (2120, 1568, 1226),
}
"""Seconds for a million tokens that were computed beforehand for an H100 in bfloat16: ours, ours
with compiled blocks, and the floor. They are estimates, not measurements."""

UNITS = {
    "tokens": "1", "seconds": "s", "operations": "1", "memory": "byte", "memory_estimated": "byte",
    "kl": "nat", "once": "s", "memory_once": "byte",
}  # fmt: skip

LONG_NAMES = {
    "tokens": "number of tokens, or rows of a square matrix",
    "seconds": "seconds that it took",
    "operations": "floating-point operations of its matrix products",
    "memory": "largest number of bytes of tensors on the device",
    "memory_estimated": "that number as a dry run estimates it",
    "once": "seconds of what a run does once, besides: measuring the floor of half precision",
    "memory_once": "largest number of bytes of tensors on the device while it does that",
    "kl": "mean KL(clean || intervened) over schedules and sequences",
}


@dataclass(frozen=True)
class Row:
    """What was measured of one shape in one way."""

    shape: str
    way: str
    tokens: int
    seconds: float
    operations: float
    memory: float = math.nan
    memory_estimated: float = math.nan
    kl: float = math.nan
    once: float = math.nan
    memory_once: float = math.nan

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


class Rows:
    """The rows of a file, which is written anew with each.

    Parameters
    ----------
    path : path
        Path of the file; rows that it has are kept.
    about : dict
        What the file says of the device and the type.
    context : int
        Tokens of a sequence.
    """

    def __init__(self, path: Path, about: dict[str, str], context: int) -> None:
        self.path, self.about, self.context = path, about, context
        self.rows: list[Row] = []
        if not path.exists():
            return
        found = load(path)
        for name in ("card", "dtype", "tiny"):
            there, here = found.attrs.get(name), about[name]
            if there != here:
                raise SystemExit(f"{path} is of {name} {there}, not {here}: choose another --out")
        # Versions and clocks are those of the last run that added a row.
        for index in range(found.sizes["row"]):
            values = {each.name: found[each.name].values[index] for each in fields(Row)}
            texts = {name: str(values.pop(name)) for name in ("shape", "way")}
            self.rows.append(
                Row(**texts, tokens=int(values.pop("tokens")),
                    **{name: float(value) for name, value in values.items()})
            )  # fmt: skip

    def has(self, shape: str, way: str, tokens: int) -> bool:
        """Whether a case is measured."""
        return self.get(shape, way, tokens) is not None

    def get(self, shape: str, way: str, tokens: int | None = None) -> Row | None:
        """Return the row of a case, if it is measured."""
        for row in self.rows:
            if (row.shape, row.way) == (shape, way) and tokens in (None, row.tokens):
                return row
        return None

    def add(self, row: Row) -> None:
        """Keep a row, and write the file."""
        self.rows.append(row)
        data = xr.Dataset(attrs=file_attributes(self.about | {"context": self.context}))
        columns = [asdict(each) for each in self.rows]
        for name in ("shape", "way"):
            data = data.assign_coords({name: ("row", [column[name] for column in columns])})
        for name, units in UNITS.items():
            values = np.array([column[name] for column in columns])
            data[name] = ("row", values, {"units": units, "long_name": LONG_NAMES[name]})
        save_with_lock(data, self.path)

    def peak(self) -> float:
        """Return the operations a second of the large product."""
        row = self.get(PEAK, "product")
        assert row is not None
        return row.operations / row.seconds


def print_tables(rows: Rows) -> None:
    """Print what was measured as Markdown."""
    about, peak = rows.about, rows.peak()
    published = published_peak(about["card"])
    print()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    stated = "" if published is None else f"; its data sheet states {published / 1e12:.0f}"
    print(f"Largest product: {peak / 1e12:.4g} TFLOP/s{stated}.")
    _print_sweeps(rows, peak, published)
    _print_readouts(rows, peak)


def _print_sweeps(rows: Rows, peak: float, published: float | None) -> None:
    wanted = [row for row in rows.rows if row.shape not in (PEAK, READOUT)]
    if not wanted:
        return
    print()
    print(
        "| shape | way | tokens a second | share of measured peak | of published peak | "
        "GiB at the peak | GiB estimated | once, seconds and GiB | "
        "a million tokens, minutes | seconds | "
        "seconds expected on an H100 | authors' 16 hours / this |"
    )
    print("|---|---|" + "--:|" * 10)
    order = list(SHAPES)
    for row in sorted(wanted, key=lambda row: order.index(row.shape)):
        rate = row.operations / row.seconds
        seconds = MILLION / row.rate
        expected = "–"
        if row.shape in EXPECTED and rows.about["tiny"] == "no":
            eager, compiled, floor = EXPECTED[row.shape]
            of_ways = {"ours": eager, "compiled": compiled, "floor": floor}
            expected = str(of_ways.get(row.way, "–"))
        cells = (
            row.shape,
            row.way,
            f"{row.rate:,.0f}",
            f"{rate / peak:.0%}",
            f"{rate / published:.0%}" if published else "–",
            _gib(row.memory),
            _gib(row.memory_estimated),
            "–" if math.isnan(row.once) else f"{row.once:.1f}, {_gib(row.memory_once)}",
            f"{seconds / 60:.1f}",
            f"{seconds:,.0f}",
            expected,
            f"{AUTHORS_MINUTES * 60 / seconds:.1f}",
        )
        print(f"| {' | '.join(cells)} |")


def _print_readouts(rows: Rows, peak: float) -> None:
    sizes = sorted({row.tokens for row in rows.rows if row.shape == READOUT})
    if not sizes:
        return
    print()
    print(
        "| tokens | loss and entropy, ms | public bar on an H100, ms | KL and the rest besides, ms "
        "| share of measured peak | one kernel, ms | the product alone, ms |"
    )
    print("|" + "--:|" * 7)
    for size in sizes:
        found = {way: rows.get(READOUT, way, size) for way in READOUT_WAYS}
        paired = found["paired"]
        share = "–" if paired is None else f"{paired.operations / paired.seconds / peak:.0%}"
        times = {
            way: "–" if row is None else f"{row.seconds * 1e3:.2f}" for way, row in found.items()
        }
        bar = f"{BAR[size]:.2f}" if size in BAR else "–"
        cells = (
            f"{size:,}",
            times["clean"],
            bar,
            times["paired"],
            share,
            times["fused"],
            times["product"],
        )
        print(f"| {' | '.join(cells)} |")


def _gib(count: float) -> str:
    return "–" if math.isnan(count) else f"{count / 2**30:.1f}"
