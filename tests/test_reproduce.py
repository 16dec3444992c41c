"""`stages reproduce`: everything, of a model small enough, resumed, and once only."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import kills
import pytest
import torch
import xarray as xr
from stand_ins import fit_once, leave_undrawn
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import cli
from recipes.recipe import SOURCES
from recipes.reproduce import measuring, reproduction
from robustness.files import output
from robustness.models import block_structure
from robustness.models.checkpoint import resolve
from robustness.sweeps import execution
from robustness.text.sources import documents

LAYERS = 8

TOKENS = 1600
"""Of more than ten documents, as figures and claims need."""


@pytest.fixture(scope="session")
def given(tmp_path_factory) -> dict[str, Path]:
    """A model with the built-in tokenizer and random weights, and data of every kind."""
    path = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve("builtin")[1])
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=LAYERS, n_head=2,
        bos_token_id=0, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(path / "tiny")
    tokenizer.save_pretrained(path / "tiny")
    texts = [text for _, text in documents("builtin-sampled")][:400]
    # Cut off, so that few sequences are of many documents.
    lines = "\n".join(json.dumps({"text": text[:400]}) for text in texts)
    (path / "stories.jsonl").write_text(lines + "\n")
    tasks = path / "tasks"
    tasks.mkdir()
    items = [{"query": text[:9], "choices": [text[9:14], "no"], "gold": 0} for text in texts]
    # One hundred items are needed of the one task whose figure has no other.
    for name, count in (("hellaswag", 101), ("arc_easy", 8)):
        (tasks / f"{name}.jsonl").write_text("\n".join(map(json.dumps, items[:count])) + "\n")
    words = [{"context": text[:9], "continuation": " the"} for text in texts[:8]]
    (tasks / "lambada_openai.jsonl").write_text("\n".join(map(json.dumps, words)) + "\n")
    return {"model": path / "tiny", "data": path / "stories.jsonl", "tasks": tasks}


@pytest.fixture(autouse=True)
def fitted_once(monkeypatch):
    fit_once(monkeypatch)


@pytest.fixture
def undrawn(monkeypatch):
    leave_undrawn(monkeypatch)


def words(given, *more):
    return [
        "reproduce", given["model"], *more, "--data", given["data"], "--tokens", TOKENS,
        "--context", 64, "--quiet",
    ]  # fmt: skip


def made(path: Path) -> dict[str, float]:
    return {str(each): each.stat().st_mtime_ns for each in path.rglob("*") if each.is_file()}


@pytest.mark.slow
def test_all_of_it_is_measured_and_a_second_call_does_nothing(run, given, monkeypatch):
    # Enough for four batches of CKA.
    command = [*words(given, "--task-data", given["tasks"]), "--tokens", 4160]
    trials, try_out = [], block_structure._try_out
    monkeypatch.setattr(
        block_structure, "_try_out", lambda *words: trials.append(words) or try_out(*words)
    )
    code, out, err = run(*command)
    assert (code, out) == (0, "outputs/tiny/report.html\n"), err
    assert len(trials) == 1, "a model is examined once"
    there = Path("outputs/tiny")
    assert {path.stem for path in there.glob("*.nc")} == {
        *(source.file for source in SOURCES),
        "claims",
    }
    assert not list(there.glob("*.partial.nc"))
    page = (there / "report.html").read_text()
    assert "is not drawn" not in page and str(given["model"].parent) not in page
    assert len(list((there / "figures").glob("*.svg"))) > 20
    data = xr.load_dataset(there / "repeat.nc")
    assert data.intervention.values.tolist()[:2] == ["repeat-5", "repeat-3"]
    before = made(there)
    monkeypatch.setattr(
        reproduction, "open_settings", lambda *_: pytest.fail("the model was opened")
    )
    assert run(*command)[:2] == (0, "outputs/tiny/report.html\n")
    assert made(there) == before


@pytest.mark.slow
def test_other_settings_or_changed_files_are_noticed(run, undrawn, given):
    assert run(*words(given, "E7"))[0] == 0
    before = made(Path("outputs/tiny"))
    code, _, err = run(*words(given, "E7"), "--seed", 3)
    assert code == 1 and "was made with" in err and "choose another --out" in err
    assert made(Path("outputs/tiny")) == before
    assert run(*words(given, "E7", "E10"))[0] == 0, "more experiments go on from what is there"
    after = made(Path("outputs/tiny"))
    assert after["outputs/tiny/lens.nc"] == before["outputs/tiny/lens.nc"]
    assert after["outputs/tiny/report.html"] > before["outputs/tiny/report.html"]
    Path("outputs/tiny/norms.nc").unlink()
    assert run(*words(given, "E7", "E10"))[0] == 0
    again = made(Path("outputs/tiny"))
    assert again["outputs/tiny/norms.nc"] > after["outputs/tiny/norms.nc"]
    assert again["outputs/tiny/lens.nc"] == before["outputs/tiny/lens.nc"]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(run, undrawn, given, tmp_path, monkeypatch):
    """SIGKILL in the middle of the sweep; then the same command, and the same numbers."""
    command = [*words(given, "E1"), "--batch-tokens", 64]
    partial = tmp_path / "outputs" / "tiny" / "sweep.partial.nc"
    monkeypatch.setattr(output, "SAVING_SHARE", float("inf"))

    def run_until_killed():
        kills.die_after(5)
        run(*command)

    assert kills.fork(run_until_killed) == -signal.SIGKILL
    assert xr.load_dataset(partial).sequences_done == 5
    assert not partial.with_name("sweep.nc").exists()
    code, _, err = run(*command)
    assert code == 0, err
    resumed = xr.load_dataset(partial.with_name("sweep.nc"))
    shutil.rmtree(tmp_path / "outputs")
    assert run(*command)[0] == 0
    xr.testing.assert_equal(resumed, xr.load_dataset(partial.with_name("sweep.nc")))


@pytest.mark.slow
def test_an_interruption_between_files_keeps_what_is_done(run, undrawn, given, monkeypatch):
    original = measuring.MEASURES["neurons"]

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(measuring.MEASURES, "neurons", interrupt)
    code, _, err = run(*words(given, "E8"))
    assert code == 130 and "the same command" in err
    assert Path("outputs/tiny/lens.nc").exists()
    before = made(Path("outputs/tiny"))
    monkeypatch.setitem(measuring.MEASURES, "neurons", original)
    assert run(*words(given, "E8"))[0] == 0
    assert made(Path("outputs/tiny"))["outputs/tiny/lens.nc"] == before["outputs/tiny/lens.nc"]


@pytest.mark.slow
def test_what_does_not_fit_is_left_out_with_its_reason(run, undrawn, given):
    """Twenty tokens are too few for local attention; the rest is measured all the same."""
    code, _, err = run(
        "reproduce", given["model"], "--data", given["data"], "--tokens", 3200, "--context", 20,
        "--out", "here", "--quiet", "E3", "E10",
    )  # fmt: skip
    assert code == 1 and "attention was left out, the rest is in here/report.html" in err
    assert "--context 34 or more" in err
    assert Path("here/norms.nc").exists() and not Path("here/attention.nc").exists()
    page = Path("here/report.html").read_text()
    assert "Figure 6a (attention to the tokens before) is not drawn: attention takes" in page
    code, _, err = run(
        "reproduce", given["model"], "--data", given["data"], "--context", 20, "E3",
        "--out", "there", "--quiet",
    )  # fmt: skip
    assert code == 1 and "nothing could be measured; attention:" in err
    assert not Path("there").exists()


def test_built_in_models_stay_offline(run, monkeypatch):
    reached = []
    monkeypatch.setattr(measuring, "evaluate_tasks", lambda *_, **__: reached.append(1))
    code, _, err = run("reproduce", "builtin", "E12", "--tokens", 2560)
    assert code == 1 and "items of benchmark tasks are on the hub: give --task-data" in err
    assert not reached


def test_experiments_are_listed_and_wrong_ones_refused(run, undrawn, given):
    code, out, _ = run("reproduce", "--list")
    assert code == 0
    for name in (*(f"E{number}" for number in range(1, 14)), "T1"):
        assert f"\n{name} " in f"\n{out}"
    assert "cost: " in out and "figures 5a, 13, v1 2" in out
    code, _, err = run("reproduce", given["model"], "E77")
    assert code == 1 and "there is no experiment 'E77'; there are: E1, E2" in err
    assert run("reproduce")[0] == 2
    code, _, err = run("reproduce", given["model"].parent / "nothing")
    assert code == 1 and "there is no directory" in err


@pytest.mark.slow
def test_a_list_needs_no_torch():
    code = "import sys, recipes.experiments.catalogue; "
    code += "sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(cli.__file__).parent).returncode == 0
    )


@pytest.mark.slow
def test_reports_segments_and_comparisons_come_from_files_alone(run, undrawn, given, monkeypatch):
    for name in ("one", "two"):
        assert run(*words(given, "E1", "E7", "E10"), "--out", name)[0] == 0
    renamed = xr.load_dataset("two/sweep.nc").attrs["model"]
    for path in Path("two").glob("*.nc"):
        data = xr.load_dataset(path)
        path.unlink()
        data.assign_attrs(model="two").to_netcdf(path)
    assert renamed == "tiny"
    monkeypatch.setattr(
        reproduction, "open_settings", lambda *_, **__: pytest.fail("the model was opened")
    )
    monkeypatch.setattr(execution, "sweep", lambda *_: pytest.fail("something was measured"))
    assert run("segment", "one")[:2] == (0, "one/stages.nc\n")
    assert run("report", "one", "--out", "page.html", "--figures", "drawn", "--quiet")[0] == 0
    assert Path("page.html").exists() and Path("drawn/5a.svg").exists()
    code, out, _ = run("compare", "one", "two", "--quiet")
    assert code == 0 and "interior agreement, drop" in out
    assert Path("outputs/compare.nc").exists() and Path("outputs/compare.html").exists()
    code, out, _ = run("show", "outputs/compare.nc")
    assert code == 0 and "claims about several" in out
    code, out, _ = run("show", "one/claims.nc")
    assert code == 0 and "C1.1" in out
    code, _, err = run("compare", "one")
    assert code == 1 and "two or more" in err
    code, _, err = run("report", "nowhere")
    assert code == 1 and "has no file of a model" in err
    code, _, err = run("plot", "one/claims.nc")
    assert code == 1


@pytest.mark.slow
def test_damaged_verdicts_and_old_boundaries_are_made_anew(run, undrawn, given):
    assert run(*words(given, "E7", "E10", "E1"))[0] == 0
    for name in ("claims.nc", "stages.nc", "report.html"):
        Path("outputs/tiny", name).write_bytes(b"")
    assert run(*words(given, "E7", "E10", "E1"))[0] == 0
    for name in ("claims.nc", "stages.nc"):
        xr.load_dataset(f"outputs/tiny/{name}")
    assert "</html>" in Path("outputs/tiny/report.html").read_text()
    Path("outputs/tiny/sweep.nc").write_bytes(b"")
    code, _, err = run("report", "outputs/tiny")
    assert code == 1 and "sweep.nc is not a NetCDF file that can be read" in err


@pytest.mark.slow
def test_another_model_of_the_same_name_is_refused_and_fresh_replaces_it(
    run, undrawn, given, tmp_path
):
    shutil.copytree(given["model"], tmp_path / "tiny")
    here = {**given, "model": tmp_path / "tiny"}
    assert run(*words(here, "E1", "E10"))[0] == 0
    torch.manual_seed(5)
    config = GPT2Config.from_pretrained(tmp_path / "tiny")
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "tiny")
    code, _, err = run(*words(here, "E1", "E10"))
    assert code == 1 and "choose another --out, or --fresh" in err
    assert run(*words(here, "E1", "E10"), "--fresh")[0] == 0
    assert run(*words(here, "E7"))[0] == 0


@pytest.mark.slow
def test_one_experiment_without_layers_in_its_file_has_a_report(run, undrawn, given):
    assert run(*words(given, "E9"))[0] == 0
    assert "Single neurons" in Path("outputs/tiny/report.html").read_text()


def test_a_full_disk_ends_it_at_once(run, undrawn, given, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", full)
    code, _, err = run(*words(given, "E1", "E4"))
    assert code == 1 and "cannot be written" in err and "left out" not in err


@pytest.mark.slow
def test_a_model_of_one_layer_is_measured_as_far_as_it_goes(run, undrawn, given, tmp_path):
    shutil.copytree(given["model"], tmp_path / "one")
    config = GPT2Config.from_pretrained(tmp_path / "one")
    config.n_layer = 1
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "one")
    command = words({**given, "model": tmp_path / "one"})
    code, _, err = run(*command, "--task-data", given["tasks"])
    assert code == 0, err
    page = Path("outputs/one/report.html").read_text()
    assert "one layer has none to be swapped with" in page or "is not drawn" in page


def test_numbers_of_a_comparison_go_into_a_netcdf_file(run):
    code, _, err = run("compare", "a", "b", "--out", "x.html")
    assert code == 2 and "ends in .nc" in err


@pytest.mark.slow
def test_another_model_in_the_directory_is_refused_before_anything_is_measured(run, undrawn, given):
    assert run(*words(given, "E1"), "--out", "here")[0] == 0
    before = made(Path("here"))
    code, _, err = run("reproduce", "builtin", "E10", "--tokens", 2560, "--out", "here")
    assert code == 1 and "sweep.nc in here is of another model (tiny, not builtin" in err
    assert made(Path("here")) == before


@pytest.mark.slow
def test_data_that_is_not_there_and_files_that_would_be_lost_are_refused(run, undrawn, given):
    for option in ("--wic-data", "--task-data"):
        code, _, err = run(*words(given, "E1"), option, "/nowhere/at/all")
        assert code == 1 and f"{option}: there is no /nowhere/at/all" in err
    assert run(*words(given, "E1", "E7"), "--out", "here")[0] == 0
    before = made(Path("here"))
    code, _, err = run("segment", "here", "--out", "here/sweep.nc")
    assert code == 1 and "here/sweep.nc holds sweep, and would be lost" in err
    code, _, err = run("compare", "here", "here", "--out", "here/lens.nc")
    assert code == 1 and "would be lost" in err
    assert made(Path("here")) == before
