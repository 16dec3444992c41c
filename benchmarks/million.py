"""Runs a long drop and swap sweep of the built-in model, whole and in four shards, and compares.

One shard is killed twice (SIGKILL) in the middle. The merged file must equal the unsharded run bit
for bit in every number of a sequence, and in its shares. The resident memory of the unsharded run
is sampled, so that it shows whether it grows.

The text is made of the built-in ones: their sentences in as many random orders as are needed.

    python benchmarks/million.py --tokens 1000000 --directory outputs/million
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import xarray as xr

from robustness.errors import Refusal
from robustness.files.netcdf import load
from robustness.text.sources import documents

SHARDS, KILLED = 4, 2
CHARACTERS = 8
"""Of text written for a token that is asked for: some documents leave long tails."""


def write_text(path: Path, tokens: int) -> None:
    """Write documents of the built-in texts, their sentences in random orders."""
    random = np.random.default_rng(0)
    sources = [text for name in ("builtin", "builtin-sampled") for _, text in documents(name)]
    size, lines = 0, []
    while size < CHARACTERS * tokens:
        for text in sources:
            sentences = text.split(". ")
            lines.append(json.dumps({"text": ". ".join(random.permutation(sentences))}))
            size += len(text)
    path.write_text("\n".join(lines) + "\n")


def start(directory: Path, tokens: int, *words: str) -> subprocess.Popen[bytes]:
    """Start a sweep."""
    command = [sys.executable, "-W", "ignore", "-m", "cli", "sweep", "builtin", "--quiet"]
    command += ["--data", str(directory / "text.jsonl"), "--tokens", str(tokens), *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def sampled(child: subprocess.Popen[bytes]) -> list[float]:
    """Wait for a run, and return its resident memory in MiB every half second."""
    found, process = [], psutil.Process(child.pid)
    while child.poll() is None:
        try:
            found.append(process.memory_info().rss / 2**20)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.5)
    if child.wait():
        raise SystemExit(f"a run ended with {child.returncode}")
    return found


def done(path: Path) -> int:
    """Return how many sequences an unfinished run has kept."""
    try:
        return int(load(path).attrs.get("sequences_done", 0))
    except Refusal:  # nothing yet
        return 0


def kill_after(child: subprocess.Popen[bytes], partial: Path, more: int) -> int:
    """Kill a run when it has kept so many sequences more; return how many it has kept."""
    before = done(partial)
    while done(partial) < before + more:
        if child.poll() is not None:
            raise SystemExit("a run ended before it was killed")
        time.sleep(0.5)
    child.send_signal(signal.SIGKILL)
    child.wait()
    return done(partial)


def same(one: xr.Dataset, other: xr.Dataset) -> bool:
    """Whether all numbers of two files are equal bit for bit."""
    return one.data_vars.keys() == other.data_vars.keys() and all(
        one[name].values.tobytes() == other[name].values.tobytes() for name in one.data_vars
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path, default=Path("outputs/million"))
    options = parser.parse_args()
    directory, tokens = options.directory, options.tokens
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "text.jsonl", tokens)
    began = time.perf_counter()
    memory = sampled(start(directory, tokens, "--out", str(directory / "whole.nc")))
    whole = load(directory / "whole.nc")
    seconds = time.perf_counter() - began
    print(f"{whole.tokens:,} tokens, {whole.sequences:,} sequences: {seconds / 60:.1f} minutes")
    tenths = [max(part) for part in np.array_split(memory, 10) if len(part)]
    print(f"peak memory by tenth of the run, MiB: {' '.join(f'{peak:.0f}' for peak in tenths)}")
    files = []
    for index in range(1, SHARDS + 1):
        files.append(directory / f"shard-{index}.nc")
        words = ("--shard", f"{index}/{SHARDS}", "--out", str(files[-1]))
        for _ in range(2 if index == KILLED else 0):
            child = start(directory, tokens, *words)
            partial = directory / f"shard-{index}.partial.nc"
            kept = kill_after(child, partial, max(1, whole.sequences // SHARDS // 4))
            print(f"shard {index} was killed with {kept} sequences kept", flush=True)
        peak = max(sampled(start(directory, tokens, *words)))
        print(f"shard {index}: {load(files[-1]).sequences:,} sequences, {peak:.0f} MiB", flush=True)
    merge = [sys.executable, "-W", "ignore", "-m", "cli", "merge", *map(str, files), "--fresh"]
    subprocess.run([*merge, "-o", str(directory / "merged.nc")], check=True)
    equal = same(whole, load(directory / "merged.nc"))
    print(f"merged and unsharded are {'equal bit for bit' if equal else 'DIFFERENT'}")
    left = sorted(file.name for file in directory.iterdir())
    print(f"in the directory: {', '.join(left)}")
    sys.exit(not equal)


if __name__ == "__main__":
    main()
