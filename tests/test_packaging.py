"""What is installed: the wheel's contents, and that it works away from the repository."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import cli
import robustness

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from the files that git tracks or would track."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, source],
        capture_output=True, check=True,
    )  # fmt: skip
    return next(target.glob("*.whl"))


def test_the_tests_run_against_this_repository():
    assert Path(robustness.__file__).parents[1] == ROOT == Path(cli.__file__).parent


@pytest.mark.slow
def test_a_wheel_holds_these_four_names_and_the_builtin_files(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"cli.py", "probes", "recipes", "robustness"}
    assert {f"{name}/py.typed" for name in ("probes", "recipes", "robustness")} <= {*names}
    for name in ("texts/prose.jsonl", "sequential/model.safetensors", "sequential/tokenizer.json"):
        assert f"robustness/builtin/{name}" in names


@pytest.mark.slow
def test_an_installed_wheel_opens_the_builtin_model_anywhere(wheel, tmp_path):
    """Unpacked, a wheel is what pip would install; the environment's own copy is hidden."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = f"""
import sys
import tomllib
sys.path[:0] = [{str(site)!r}]
import robustness
assert robustness.__file__.startswith({str(site)!r}), robustness.__file__
from robustness.text.corpus import cut
from robustness.models.opening import open_model
from robustness.sweeps import sweep
for name in ("builtin", "builtin-parallel"):
    model = open_model(name)
    corpus = cut("builtin-sampled", model.tokenizer, context=64, tokens=256)
    print(float(sweep(model, corpus, ["drop"], layers=[0, 5]).kl.mean()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(float(line) > 0 for line in done.stdout.split()) and done.stdout.count("\n") == 2


def test_what_is_built_on_is_what_is_tested():
    """Traces rest on what nnsight does inside, so that no other version may be installed."""
    bounds = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    bounded = {Requirement(bound).name: Requirement(bound).specifier for bound in bounds}
    for name in ("nnsight", "transformers"):
        assert pinned[name] in bounded[name]
        major, minor, patch = map(int, pinned[name].split("."))
        others = [f"{major}.{minor}.{patch - 1}", f"{major}.{minor + 1}.0"]
        assert not [other for other in others if other in bounded[name]], name
