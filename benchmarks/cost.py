"""Compares what `stages sweep --dry-run` foretells with what a real run takes.

For the built-in model and for random weights of the shape of GPT-2-small: the peak of a process
that estimates, which it says of a run, and the peak resident memory of a process that runs, both of
their own; and the minutes. Peaks include Python, its libraries and the model.

    python benchmarks/cost.py
"""

import argparse
import json
import resource
import subprocess
import sys
from time import perf_counter

from sweep import build
from ways import make_corpus

from robustness.models.opening import open_model
from robustness.runs.settings import RunOptions
from robustness.sweeps import sweep
from robustness.sweeps.cost import estimate
from robustness.sweeps.preparation import prepare
from robustness.sweeps.settings import SweepSettings
from robustness.text.corpus import cut

TOKENS = {"builtin": 8192, "gpt2-small": 1024}


def act(way: str, shape: str, tokens: int) -> None:
    """Estimate or run a drop and swap sweep in this process, and print bytes and seconds."""
    if shape == "builtin":
        model = open_model("builtin")
        corpus = cut("builtin", model.tokenizer, context=256, tokens=tokens)
    else:
        model = open_model(build(shape))
        corpus = make_corpus(tokens, model.vocabulary)
    if way == "foretold":
        cost = estimate(prepare(model, corpus, SweepSettings(), RunOptions()))
        print(json.dumps({"bytes": cost.memory_bytes, "seconds": cost.seconds}))
        return
    began = perf_counter()
    sweep(model, corpus)
    seconds = perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"bytes": peak, "seconds": seconds}))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=TOKENS, nargs="+", default=list(TOKENS))
    parser.add_argument("--act", choices=("foretold", "measured"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.act:
        return act(options.act, options.shape[0], TOKENS[options.shape[0]])
    for shape in options.shape:
        found = {}
        for way in ("foretold", "measured"):
            command = [sys.executable, "-W", "ignore", __file__, "--shape", shape, "--act", way]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[way] = json.loads(done.stdout)
        print(f"{shape}, {TOKENS[shape]:,} tokens")
        for name, scale, unit in (("bytes", 2**20, "MiB"), ("seconds", 1, "s")):
            told, seen = (found[way][name] / scale for way in ("foretold", "measured"))
            print(f"  {told:8.1f} {unit} foretold  {seen:8.1f} measured  {told / seen:.2f}")
    return None


if __name__ == "__main__":
    main()
