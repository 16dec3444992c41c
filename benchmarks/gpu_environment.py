"""Makes an environment whose torch computes on a CUDA device, and prints its Python.

The first of these that there is: `.venv`, if its torch is built for CUDA; a new environment `.gpu`
that takes torch, and whatever else fits, from the Python that runs this script, if its torch is
built for CUDA; or one with the torch of pip's index. For what is missing pip needs a network, or a
directory of wheels: PIP_FIND_LINKS and PIP_NO_INDEX in the environment are pip's own.

    python3 benchmarks/gpu_environment.py
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ".[gpu]"

REMEDY = (
    "give a Python that has a torch for CUDA (make gpu PYTHON=/path/to/python3), an index that has "
    "one (PIP_INDEX_URL=https://download.pytorch.org/whl/cu130), or a directory of wheels "
    "(PIP_FIND_LINKS)"
)

ASKED = "import torch; print(torch.version.cuda or '')"


def say(text: str) -> None:
    """Print to stderr: stdout is for the path of the Python alone."""
    print(text, file=sys.stderr, flush=True)


def cuda_of(python: Path | str) -> str:
    """Return the version of CUDA that a Python's torch is built for; empty without such a torch."""
    asked = subprocess.run([python, "-c", ASKED], capture_output=True, text=True, cwd="/")
    return asked.stdout.strip() if asked.returncode == 0 else ""


def install(python: Path, *words: str) -> None:
    """Install packages into an environment."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr)
    if done.returncode:
        raise SystemExit(f"pip could not install {words[-1]}: {REMEDY}")


def name_of(distribution: str) -> str:
    """Return a package's name as pip compares names."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def other_constraints() -> str:
    """Return the constraints on packages that this Python does not have."""
    there = {name_of(each.name) for each in distributions() if each.name}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return "\n".join(line for line in lines if name_of(line.partition("==")[0]) not in there)


def make_environment(target: Path, shared: bool) -> Path:
    """Make an environment, with the packages of this Python in reach or without."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", target], check=True)
    python = target / "bin/python"
    with tempfile.TemporaryDirectory() as directory:
        constraints = Path(directory) / "constraints.txt"
        if shared:
            # Not by --system-site-packages: this Python may itself be that of an environment.
            places = [
                path for path in sys.path if path.endswith(("site-packages", "dist-packages"))
            ]
            (site,) = target.glob("lib/python*/site-packages")
            (site / "shared.pth").write_text("\n".join(places) + "\n")
            constraints.write_text(other_constraints())
        else:
            constraints = ROOT / "constraints.txt"
            install(python, "--constraint", str(constraints), "torch")
        install(python, "--constraint", str(constraints), "--editable", EXTRAS)
    return python


def main() -> None:
    """Find or make the environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, default=ROOT / ".gpu")
    parser.add_argument("--any", action="store_true", help="take a torch without CUDA too")
    options = parser.parse_args()
    made, ready = options.into / "bin/python", options.into / "ready"
    sources = [ROOT / name for name in ("pyproject.toml", "constraints.txt")]
    usual = ROOT / ".venv/bin/python"
    newest = max(path.stat().st_mtime for path in sources)
    if ready.exists() and ready.stat().st_mtime >= newest:
        print(made)
        return
    if usual.exists() and cuda_of(usual):
        print(usual)
        return
    shared = bool(cuda_of(sys.executable)) or options.any
    whose = f"that of {sys.executable}" if shared else "pip's"
    say(f"making {os.path.relpath(options.into)}, with {whose} torch")
    python = make_environment(options.into, shared)
    if not (cuda_of(python) or options.any):
        raise SystemExit(f"the torch that pip found is not built for CUDA: {REMEDY}")
    ready.touch()
    print(python)


if __name__ == "__main__":
    main()
