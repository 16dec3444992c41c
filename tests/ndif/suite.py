"""Everything on a real NDIF server, trusted and in its sandbox. Run by `make ndif-test`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from proxy import Proxy
from server import SANDBOXED, TRUSTED, Missing, Server

STAGES = Path(sys.executable).with_name("stages")
DIRECTORY = Path(
    os.environ.get("NDIF_MODEL", Path(__file__).parents[2] / "robustness/builtin/sequential")
).resolve()
NAME = f"stages/{DIRECTORY.name}"
KEYS = {"trusted": TRUSTED, "sandboxed": SANDBOXED}

CLOSE = {"atol": 2e-4, "rtol": 2e-3}
"""Float32 on both sides, by different builds of torch, and logits of 10 and more."""


def served(dtype: str = "float32", **environment: str) -> Iterator[Server]:
    """Yield a server that runs the model, and take it down."""
    try:
        found = Server({NAME: DIRECTORY}, dtype, **environment)
    except Missing as missing:
        pytest.skip(str(missing))
    begun = time.monotonic()
    try:
        found.start()
        found.deploy(NAME)
        print(f"\nserver up, {NAME} deployed: {time.monotonic() - begun:.0f} s")
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def server():
    yield from served()


@pytest.fixture(params=KEYS)
def key(request):
    return KEYS[request.param]


def stages(server: Server, key: str, *words: object) -> str:
    """Run a command against the server, and return what it prints."""
    done = subprocess.run(
        [str(STAGES), *map(str, words)], env=server.client(key), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def here(*words: object) -> None:
    """Run a command on this machine."""
    subprocess.run([str(STAGES), *map(str, words), "--quiet"], check=True, capture_output=True)


def assert_close(there: Path, local: Path, names: tuple[str, ...]) -> None:
    found, expected = xr.load_dataset(there), xr.load_dataset(local)
    assert (
        found.attrs["server"] == "127.0.0.1" and "nnsight 0.8.0" in found.attrs["server_versions"]
    )
    for name in names:
        if name in {"agreement", "accuracy", "model_accuracy"}:
            # Of a token whose two best are equal to the last digits, either may win.
            difference = abs(found[name] - expected[name])
            assert difference.max() < 0.05 and (difference > 0).mean() < 0.01, name
        else:
            np.testing.assert_allclose(found[name], expected[name], **CLOSE, err_msg=name)


def test_models_lists_it(server):
    assert f"{NAME} " in stages(server, TRUSTED, "models", "--remote")


def test_ten_batches_of_a_sweep(server, key, tmp_path):
    words = ["--tokens", 640, "--context", 64, "--batch-tokens", 64]
    out = stages(server, key, "sweep", NAME, "--remote", *words, "--out", tmp_path / "there.nc")
    assert out.strip() == str(tmp_path / "there.nc")
    here("sweep", DIRECTORY, *words, "--out", tmp_path / "here.nc")
    names = ("kl", "loss", "entropy", "clean_loss", "agreement", "accuracy")
    assert xr.load_dataset(tmp_path / "there.nc").sizes["sequence"] == 10
    assert_close(tmp_path / "there.nc", tmp_path / "here.nc", names)


def test_observe(server, key, tmp_path):
    kinds = ("lens", "cka", "attention", "norms", "similarity")
    words = [*kinds, "--tokens", 1280, "--context", 64, "--batch-tokens", 1024]
    stages(server, key, "observe", NAME, "--remote", *words, "--out", tmp_path / "there")
    here("observe", DIRECTORY, *words, "--out", tmp_path / "here")
    for kind in kinds:
        names = tuple(xr.load_dataset(tmp_path / "here" / f"{kind}.nc").data_vars)
        assert_close(tmp_path / "there" / f"{kind}.nc", tmp_path / "here" / f"{kind}.nc", names)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("wic", ("accuracy",)),
        ("ing", ("label", "model_accuracy")),
        ("subjoiner", ("attention",)),
    ],
)
def test_probe(server, key, tmp_path, task, names):
    words = [task, "--batch-tokens", 16384]
    words += [] if task == "wic" else ["--items", 400]
    stages(server, key, "probe", NAME, "--remote", *words, "--out", tmp_path / "there.nc")
    here("probe", DIRECTORY, *words, "--out", tmp_path / "here.nc")
    if task == "wic":
        found = [xr.load_dataset(tmp_path / f"{side}.nc") for side in ("there", "here")]
        # Probes are fitted to numbers that differ in the last digit.
        assert abs(found[0].accuracy - found[1].accuracy).mean() < 0.02
    else:
        assert_close(tmp_path / "there.nc", tmp_path / "here.nc", names)


def four_items(directory: Path) -> Path:
    """Write a task of four items, and return its directory."""
    directory.mkdir()
    items = [
        {"query": f"Once upon a time there was a {noun}. The", "choices": [noun, "sun"], "gold": 0}
        for noun in ("cat", "dog", "bird", "king")
    ]
    (directory / "arc_easy.jsonl").write_text("\n".join(map(json.dumps, items)))
    return directory


def test_tasks(server, key, tmp_path):
    data = four_items(tmp_path / "data")
    words = ["arc_easy", "--drop", "--task-data", data]
    stages(server, key, "tasks", NAME, "--remote", *words, "--out", tmp_path / "there.nc")
    here("tasks", DIRECTORY, *words, "--out", tmp_path / "here.nc")
    assert_close(tmp_path / "there.nc", tmp_path / "here.nc", ("value", "correct"))


def test_what_a_request_takes(server, key, tmp_path):
    """Say how long requests take, and hold the estimate of what crosses the socket against it."""
    script = """
import sys, time, torch
from robustness.runs import remote_traffic
from robustness.text.corpus import cut
from robustness.sweeps import sweep
from robustness.models.opening import open_model
model = open_model(sys.argv[1], remote=True)
tokens = torch.arange(16)[None]
took = []
for _ in range(5):
    begun = time.monotonic()
    with torch.no_grad(), model.traced.trace(tokens, use_cache=False, **model.request):
        entering = model.blocks[0].input.sum().save()
    took.append(time.monotonic() - begun)
costs = []
remote_traffic.allow = lambda model, crossings, lower: costs.extend(crossings)
begun = time.monotonic()
sweep(model, cut("builtin", model.tokenizer, context=64, tokens=1024), batch_tokens=1024)
print(sorted(took)[2], time.monotonic() - begun, model.sandboxed, costs[0].bytes)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, NAME], env=server.client(key), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    small, batch, sandboxed, estimate = done.stdout.split()
    counted = int((server.place / "crossed").read_text().splitlines()[-1].split()[1])
    kind = "sandboxed" if key == SANDBOXED else "trusted"
    print(
        f"\n{kind}: a small request {float(small):.2f} s, drop and swap of 1,024 tokens {batch} s"
    )
    assert sandboxed == str(key == SANDBOXED)
    if key == SANDBOXED:
        print(f"estimated to cross {float(estimate) / 1e6:.1f} MB, counted {counted / 1e6:.1f} MB")
        assert 0.75 < float(estimate) / counted < 1.25
    else:
        assert counted == 0


def test_a_connection_that_is_cut_five_times_runs_each_job_once(server, tmp_path):
    """Whatever is lost on the way, the server executes as much as on a way without losses."""
    words = ["sweep", NAME, "--remote", "--tokens", 128, "--context", 64, "--batch-tokens", 64]
    log, executed = server.place / "crossed", []
    proxy = Proxy(server.ports["api"])
    for name, host in (("straight", server.url), ("cut", proxy.url)):
        before = len(log.read_text().splitlines()) if log.exists() else 0
        command = [str(STAGES), *map(str, words), "--out", str(tmp_path / f"{name}.nc")]
        environment = server.client() | {"NDIF_HOST": host}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        executed.append(len(log.read_text().splitlines()) - before)
    proxy.close()
    print(f"\n{proxy.cut} connections cut; {executed} jobs executed without cuts and with them")
    assert executed[0] == executed[1] == proxy.sent
    assert proxy.cut == proxy.CUTS * proxy.sent
    whole, cut = (xr.load_dataset(tmp_path / f"{name}.nc") for name in ("straight", "cut"))
    xr.testing.assert_equal(whole.kl, cut.kl)


def test_a_restart_in_the_middle_of_a_run_is_waited_for(server, tmp_path):
    """A server that loses power for two minutes costs the user nothing but these."""
    words = ["sweep", NAME, "--remote", "--tokens", 6400, "--context", 64, "--batch-tokens", 64]
    words = [str(STAGES), *map(str, words), "--out", str(tmp_path / "there.nc")]
    partial = tmp_path / "there.partial.nc"
    with subprocess.Popen(
        words, env=server.client(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        deadline = time.monotonic() + 120
        while not (partial.exists() and _done(partial) >= 10):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        server.kill()
        kept, killed = _done(partial), time.monotonic()
        time.sleep(120)
        server.start(hub=False)
        server.deploy(NAME)
        back = time.monotonic()
        _, said = running.communicate(timeout=300)
    print(f"\nkilled after {kept} of 100 batches, back after {back - killed:.0f} s, done after "
          f"{time.monotonic() - back:.0f} s more; {said[-300:]}")  # fmt: skip
    assert running.returncode == 0, said[-2000:]
    lines = [line for line in said.splitlines() if "trying again" in line]
    assert 1 <= len(lines) <= 3 and lines[0].endswith("trying again for up to 10 min")
    local = ["--tokens", 6400, "--context", 64, "--batch-tokens", 64]
    here("sweep", DIRECTORY, *local, "--out", tmp_path / "here.nc")
    assert_close(tmp_path / "there.nc", tmp_path / "here.nc", ("kl", "loss", "agreement"))


def test_interrupted_it_loses_nothing(server, tmp_path):
    words = ["sweep", NAME, "--remote", "--tokens", 3200, "--context", 64, "--batch-tokens", 64]
    words = [str(STAGES), *map(str, words), "--out", str(tmp_path / "there.nc")]
    partial = tmp_path / "there.partial.nc"
    with subprocess.Popen(words, env=server.client(), stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 120
        while not (partial.exists() and _done(partial) >= 5):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        seen = _done(partial)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in said
    kept = xr.load_dataset(partial)
    assert seen <= kept.attrs["sequences_done"] < 50
    done = subprocess.run(words, env=server.client(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    whole = xr.load_dataset(tmp_path / "there.nc")
    before = slice(0, int(kept.attrs["sequences_done"]))
    xr.testing.assert_equal(whole.kl.isel(sequence=before), kept.kl.isel(sequence=before))


def test_nothing_is_left_and_no_other_is_ended(server):
    with subprocess.Popen(["sleep", "600"]) as other:
        server.stop()
        assert not list(server.processes())
        assert other.poll() is None
        other.kill()


def _done(partial: Path) -> int:
    try:
        return int(xr.load_dataset(partial).attrs["sequences_done"])
    except (OSError, ValueError, RuntimeError):
        return 0
