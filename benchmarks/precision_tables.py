"""Tables of `precision.py`, as Markdown, of what it measured."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import xarray as xr
from numpy.typing import NDArray

EDGES = (0, 0.3, 1, 3, 10, 30, 100, 1000, np.inf)
"""Edges of the classes of KL, in floors, over which the table of shifts takes medians."""

DTYPES = ("bfloat16", "float16")

Values = NDArray[np.float64]


def shifts(dataset: xr.Dataset) -> tuple[Values, Values, float]:
    """Return KL in float32 and its shift in half precision, of every intervention, and the floor.

    The same weights in both. KL and shift are in nats.
    """
    kl = dataset["intervened"].sel(readout="kl")
    exact, half = kl.sel(run="rounded").values, kl.sel(run="half").values
    floor = float(dataset["clean"].sel(between="arithmetic", readout="kl"))
    return exact.ravel(), (half - exact).ravel(), floor


def line(*cells: object) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def title(dataset: xr.Dataset) -> str:
    """Return the name of a model in tables."""
    family = dataset.attrs["architecture"].removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    return f"{family}, {dataset.attrs['model']}"


def print_clean(found: Sequence[xr.Dataset]) -> None:
    """Print the floors of the clean models."""
    print(line("model", "blocks", "type", "whole", "arithmetic", "weights", "agreement", "loss"))
    print("|---|--:|---" + "|--:" * 5 + "|")
    for each in found:
        clean = each["clean"]
        kls = [f"{float(kl):.1e}" for kl in clean.sel(readout="kl")]
        _, agreement, rise = clean.sel(between="arithmetic").values
        print(
            line(
                title(each),
                each.attrs["layers"],
                each.attrs["dtype"],
                *kls,
                f"{agreement:.4f}",
                f"{rise:+.1e}",
            )
        )


def print_depth(found: Sequence[xr.Dataset]) -> None:
    """Print how the floor grows with the number of blocks, and what one rounding at a depth does.

    In parts of the floor of the whole model.
    """
    names = list(found[0]["schedule"].values)
    places = ("0", "L/4", "L/2", "3L/4", "L")
    print(line("model", "type", *names, *(f"rounded at {place}" for place in places)))
    print("|---|---" + "|--:" * (len(names) + len(places)) + "|")
    for each in found:
        floor = float(each["clean"].sel(between="arithmetic", readout="kl"))
        grown = each["depth"].sel(readout="kl").values / floor
        by_layer = each["layer"].sel(readout="kl").values / floor
        chosen = [by_layer[round(part * each.attrs["layers"] / 4)] for part in range(5)]
        cells = [f"{value:.2f}" for value in (*grown, *chosen)]
        print(line(title(each), each.attrs["dtype"], *cells))


def print_anew(found: Sequence[xr.Dataset]) -> None:
    """Print the KL of two half-precision runs, one of them disturbed, in floors of the model."""
    print(line("model", "type", "before the first block", "before every block"))
    print("|---|---|--:|--:|")
    for each in found:
        floor = float(each["clean"].sel(between="arithmetic", readout="kl"))
        kls = each["anew"].sel(readout="kl").values / floor
        print(line(title(each), each.attrs["dtype"], *(f"{kl:.2f}" for kl in kls)))


def print_shifts(found: Sequence[xr.Dataset]) -> None:
    """Print how the floor adds to the KL of an intervention, by the size of the KL in floors."""
    print(line("KL in float32, floors", "n", "shift, floors: median", "10 to 90 %",
               "half / float32: median", "10 to 90 %"))  # fmt: skip
    print("|---" + "|--:" * 5 + "|")
    sizes, moved = [], []
    for each in found:
        exact, shift, floor = shifts(each)
        sizes.append(exact / floor)
        moved.append(shift / floor)
    size, shift = np.concatenate(sizes), np.concatenate(moved)
    for least, most in pairwise(EDGES):
        inside = (size >= least) & (size < most)
        if not inside.any():
            continue
        low, middle, high = np.quantile(shift[inside], (0.1, 0.5, 0.9))
        ratios = np.quantile(1 + shift[inside] / size[inside], (0.1, 0.5, 0.9))
        print(
            line(
                f"{least:g} to {most:g}",
                int(inside.sum()),
                f"{middle:+.2f}",
                f"{low:+.2f} to {high:+.2f}",
                f"{ratios[1]:.3f}",
                f"{ratios[0]:.3f} to {ratios[2]:.3f}",
            )
        )


def print_places(found: Sequence[xr.Dataset]) -> None:
    """Print the median shift by where a block's output was changed, of KLs of 3 to 100 floors."""
    print(line("model", "type", "n", "first third", "middle third", "last third"))
    print("|---|---" + "|--:" * 4 + "|")
    for each in found:
        exact, shift, floor = shifts(each)
        layers = each.attrs["layers"]
        third = np.tile(3 * np.arange(layers) // layers, each.sizes["share"])
        inside = (exact > 3 * floor) & (exact < 100 * floor)
        medians = []
        for part in range(3):
            moved = shift[inside & (third == part)] / floor
            medians.append(f"{np.median(moved):+.2f}" if moved.size else "-")
        print(line(title(each), each.attrs["dtype"], int(inside.sum()), *medians))


def print_drops(found: Sequence[xr.Dataset]) -> None:
    """Print what half precision does to the readouts of the drops of all blocks."""
    shifted = ("shift of KL, floors: median", "largest", "of KL, %")
    others = ("of agreement", "of the loss's rise")
    print(line("model", "type", "KL in float32", *shifted, *others))
    print("|---|---" + "|--:" * 6 + "|")
    for each in found:
        floor = shifts(each)[2]
        drops = each["intervened"].sel(share=1.0)
        exact, moved = drops.sel(run="rounded"), drops.sel(run="half") - drops.sel(run="rounded")
        kl, shift = exact.sel(readout="kl").values, moved.sel(readout="kl").values
        agreement, rise = (moved.sel(readout=name).values for name in ("agreement", "loss_rise"))
        print(
            line(
                title(each),
                each.attrs["dtype"],
                f"{kl.min():.2g} to {kl.max():.2g}",
                f"{np.median(shift) / floor:+.2f}",
                f"{shift[np.argmax(np.abs(shift))] / floor:+.1f}",
                f"{100 * np.abs(shift / kl).max():.2g}",
                f"{np.abs(agreement).max():.4f}",
                f"{np.abs(rise).max():.1e}",
            )
        )


def print_tables(found: Sequence[xr.Dataset]) -> None:
    """Print all tables."""
    for show in (print_clean, print_depth, print_anew, print_drops, print_places):
        show(found)
        print()
    for dtype in DTYPES:
        of_type = [each for each in found if each.attrs["dtype"] == dtype]
        if of_type:
            print(f"{dtype}:\n")
            print_shifts(of_type)
            print()
