import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import kills
import pytest
import stand_ins
import torch
import xarray as xr
from commands import COMMANDS
from transformers import T5Config

from recipes.commands import observe as observe_command
from recipes.commands import progress
from robustness.measurements import observation
from robustness.measurements.measurement import MEASUREMENTS
from robustness.models.settings import ATTENTION, DTYPES
from robustness.schedules.built_in import FORMS, PAIRS
from robustness.sweeps import execution


@pytest.mark.slow
def test_a_sweep_prints_its_file_which_show_and_plot_read(run, llama, stories):
    code, out, err = run(
        "sweep", llama, "--data", stories, "--context", 32, "--tokens", 300, "--repeat", 2
    )
    assert (code, out) == (0, "outputs/tiny-llama/sweep.nc\n"), err
    data = xr.load_dataset("outputs/tiny-llama/sweep.nc")
    assert data.intervention.values.tolist() == ["repeat-2"]
    assert data.sizes == {"intervention": 1, "layer": 4, "sequence": 9}
    assert str(stories.parent) not in str(data.attrs)
    words = ["stages", "sweep", "tiny-llama", "--data", "stories.jsonl", "--context", "32"]
    assert set(words) <= set(data.command.split())
    code, out, _ = run("show", "outputs/tiny-llama/sweep.nc")
    assert code == 0 and "repeat-2" in out and "±" in out
    code, out, _ = run("plot", "outputs/tiny-llama/sweep.nc")
    assert code == 0 and Path(out.strip()).stat().st_size > 5000
    code, out, _ = run("plot", "outputs/tiny-llama/sweep.nc", "--out", "x.svg")
    assert (code, out) == (0, "x.svg\n")


@pytest.mark.slow
def test_without_flags_a_sweep_is_drop_and_swap(run, llama, stories):
    assert run("sweep", llama, "--data", stories, "--context", 32)[0] == 0
    data = xr.load_dataset("outputs/tiny-llama/sweep.nc")
    assert data.intervention.values.tolist() == ["drop", "swap"]


@pytest.mark.slow
def test_without_a_terminal_progress_is_a_line_now_and_then(run, llama, stories, monkeypatch):
    words = ["sweep", llama, "--data", stories, "--context", 32, "--tokens", 300, "--drop"]
    words += ["--batch-tokens", 96]
    first = [f"stages: opening {llama}", "stages: 0 of 9 sequences"]
    last = "next: stages plot outputs/tiny-llama/sweep.nc"
    assert run(*words)[2].splitlines() == [*first, last]
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    told = run(*words, "--fresh")[2].splitlines()
    assert told[:2] == first and told[-2:] == ["stages: 9 of 9 sequences", last]
    assert run(*words, "--fresh", "--quiet")[2] == ""


@pytest.mark.slow
def test_differences_are_shown_and_drawn_from_files(run, llama, stories):
    words = ["sweep", llama, "--data", stories, "--tokens", 300, "--context", 32]
    assert run(*words, "--out", "a.nc")[0] == 0
    _, out, _ = run("show", "a.nc", "--minus", "drop", "--bootstrap")
    assert "less drop: paired differences" in out and "[95 % bootstrap interval" in out
    assert run("plot", "a.nc", "--minus", "a.nc", "--out", "d.svg")[:2] == (0, "d.svg\n")
    code, _, err = run("show", "a.nc", "--minus", "dorp")
    assert code == 1 and "it has drop, swap" in err


@pytest.mark.slow
def test_observe_prints_its_files_which_show_and_plot_read(run, llama, stories):
    words = ("observe", llama, "--data", stories, "--context", 40)
    code, out, err = run(*words)
    assert code == 0, err
    files = [Path(line) for line in out.splitlines()]
    assert [file.stem for file in files] == list(observe_command.MEASUREMENTS)
    for file in files:
        code, out, err = run("show", file)
        assert code == 0 and out.startswith("tiny-llama (LlamaForCausalLM"), err
        code, out, err = run("plot", file)
        assert (code, out) == (0, f"{file.with_suffix('.png')}\n"), err
        assert str(stories.parent) not in str(xr.load_dataset(file).attrs)
    assert run(*words)[0] == 0
    code, _, err = run(*words, "--seed", 1)
    assert code == 1 and "was made with seed 0, not 1" in err
    assert run(*words, "lens", "--fresh", "--seed", 1)[0] == 0


def test_neurons_alone_open_no_model(run, llama, monkeypatch):
    monkeypatch.setattr("robustness.models.opening.open_model", None)
    code, out, err = run("observe", llama, "neurons", "--real-vocabulary", "--kurtosis", 5)
    assert (code, out) == (0, "outputs/tiny-llama/neurons.nc\n"), err
    assert xr.load_dataset("outputs/tiny-llama/neurons.nc").kurtosis_threshold == 5


@pytest.fixture(scope="module")
def small_models(tmp_path_factory):
    return stand_ins.make_models(tmp_path_factory.mktemp("builtin"))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["wic", "ing", "subjoiner"])
def test_probe_prints_its_file_which_show_and_plot_read(run, task, small_models, monkeypatch):
    stand_ins.stand_in(monkeypatch, {}, small_models)
    sizes = {"ing": ("--items", 500), "subjoiner": ("--items", 60, "--pieces", 2), "wic": ()}[task]
    code, out, err = run("probe", "builtin", task, *sizes)
    assert (code, out) == (0, f"outputs/builtin/{task}.nc\n"), err
    code, out, err = run("show", f"outputs/builtin/{task}.nc")
    assert code == 0 and out.startswith("builtin (GPT2LMHeadModel"), err
    assert run("plot", f"outputs/builtin/{task}.nc")[:2] == (0, f"outputs/builtin/{task}.png\n")


@pytest.mark.slow
def test_tasks_prints_its_file_which_show_and_plot_read(run, llama):
    Path("data").mkdir()
    rows = [
        {"query": f"The cat {at}", "choices": ["sat", "sang a song"], "gold": at % 2}
        for at in range(6)
    ]
    Path("data/arc_easy.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("tasks", llama, "arc_easy", "--drop", "--task-data", "data", "--limit", 5)
    code, out, err = run(*words)
    assert (code, out) == (0, "outputs/tiny-llama/tasks.nc\n"), err
    data = xr.load_dataset("outputs/tiny-llama/tasks.nc")
    assert data.sizes["item"] == 5 and data.intervention.values.tolist() == ["drop"]
    code, out, err = run("show", "outputs/tiny-llama/tasks.nc")
    assert code == 0 and "arc_easy, acc: clean" in out, err
    assert run("plot", "outputs/tiny-llama/tasks.nc")[0] == 0
    code, _, err = run(*words[:-1], 4)
    assert code == 1 and "was made with" in err


@pytest.mark.slow
def test_observe_leaves_out_what_the_text_does_not_allow(run, llama, stories):
    words = ("--data", stories, "--context", 20, "--tokens", 200)
    code, out, err = run("observe", llama, *words)
    names = [Path(line).stem for line in out.splitlines()]
    assert (code, names) == (0, ["lens", "norms", "similarity", "neurons"])
    assert "attention is left out: attention takes sequences of at least" in err
    assert "cka is left out: " in err
    code, out, err = run("observe", llama, "attention", "norms", *words, "--out", "named")
    assert code == 1 and Path(out.strip()) == Path("named/norms.nc")
    assert err.splitlines()[-1].startswith("stages: attention was left out, the rest was measured")
    code, _, err = run("observe", llama, "attention", "cka", *words, "--out", "none")
    assert code == 1 and "nothing could be measured; attention: attention takes" in err


def test_what_observe_offers_is_what_there_is():
    assert observe_command.MEASUREMENTS == (*MEASUREMENTS, "neurons")


def test_free_schedules_have_a_file_of_their_own(run, llama, stories):
    words = ("sweep", llama, "--data", stories, "--context", 32, "--schedule", "0-2-1..")
    assert run(*words)[:2] == (0, "outputs/tiny-llama/schedules.nc\n")
    data = xr.load_dataset("outputs/tiny-llama/schedules.nc")
    assert data.schedule.values.tolist() == ["0-2-1..3"]
    code, _, err = run(*words, "--drop")
    assert code == 2 and "--schedule goes without" in err


@pytest.mark.slow
def test_pairs_of_layers_have_a_file_of_their_own_which_show_and_plot_read(run, llama, stories):
    words = ("sweep", llama, "--data", stories, "--context", 32, "--tokens", 300)
    pairs = ("--intervention", "drop-pair", "--intervention", "repeat-span", "--layers", "1..2")
    assert run(*words, *pairs)[:2] == (0, "outputs/tiny-llama/pairs.nc\n")
    data = xr.load_dataset("outputs/tiny-llama/pairs.nc")
    assert data.sizes == {"intervention": 2, "layer": 2, "layer_to": 2, "sequence": 9}
    code, out, _ = run("show", "outputs/tiny-llama/pairs.nc")
    assert code == 0 and "repeat-span, several layers: all 1 by kl" in out
    assert run("plot", "outputs/tiny-llama/pairs.nc")[0] == 0
    code, _, err = run(*words, *pairs, "--drop")
    assert code == 1 and "run them apart" in err
    code, _, err = run(*words, "--layers", "1-a2")
    assert code == 1 and "layers are whole blocks" in err


def test_sublayers_have_options_of_their_own(run, llama, stories):
    words = ("sweep", llama, "--data", stories, "--context", 32, "--tokens", 300)
    assert run(*words, "--attention-drop", "--mlp-drop")[0] == 0
    data = xr.load_dataset("outputs/tiny-llama/sweep.nc")
    assert data.intervention.values.tolist() == ["attention-drop", "mlp-drop"]
    assert data.schedule.values[0].tolist() == ["m0-1..3", "0-m1-2-3", "0-1-m2-3", "0..2-m3"]


def test_the_papers_way_takes_whole_documents(run, llama, stories):
    words = ("sweep", llama, "--data", stories, "--paper-compat", "--documents", 5)
    assert run(*words)[0] == 0
    data = xr.load_dataset("outputs/tiny-llama/sweep.nc")
    assert data.document.values.tolist() == [0, 1, 2, 3, 4]
    assert data.alignment == "as the paper's authors"


def test_models_lists_the_papers_sixteen(run):
    lines = run("models")[1].splitlines()
    assert len(lines) == 1 + 2 + 16
    assert any(line.split() == ["microsoft/phi-1_5", "Phi", "24", "parallel"] for line in lines)


REFUSALS = {
    "unknown model": (("sweep", "nobody/nothing"), "there is no model 'nobody/nothing'"),
    "no directory": (("sweep", "./missing"), "there is no directory ./missing"),
    "no config": (("sweep", "."), "has no config.json"),
    "encoder-decoder": (("sweep", "T5"), "is an encoder-decoder"),
    "unknown data": (("sweep", "MODEL", "--data", "none.jsonl"), "there is no file 'none.jsonl'"),
    "empty data": (("sweep", "MODEL", "--data", "empty.txt"), "empty.txt is empty"),
    "latin-1 data": (("sweep", "MODEL", "--data", "latin.txt"), "cannot be read as UTF-8"),
    "long context": (("sweep", "MODEL", "--context", 65), "65 is longer than tiny-llama takes: 64"),
    "few tokens": (
        ("sweep", "MODEL", "--data", "DATA", "--context", 64, "--tokens", 99999),
        "99999 tokens were asked for",
    ),
    "no such block": (("sweep", "MODEL", "--schedule", "0..9"), "there is no block 9"),
    "empty schedule": (("sweep", "MODEL", "--schedule", ""), "an empty schedule"),
    "bad schedule": (("sweep", "MODEL", "--schedule", "0-x"), "character 3 ('x')"),
    "no intervention": (("sweep", "MODEL", "--intervention", "melt"), "no intervention 'melt'"),
    "bad device": (("sweep", "MODEL", "--device", "cuda:7"), "device 'cuda:7' cannot be used"),
    "unwritable": (
        ("sweep", "MODEL", "--data", "DATA", "--context", 32, "--out", "empty.txt/a.nc"),
        "cannot be written",
    ),
    "unknown model's neurons": (("observe", "./missing", "neurons"), "there is no directory"),
    "short sequences": (
        ("observe", "MODEL", "attention", "--data", "DATA", "--context", 20),
        "attention takes sequences of at least 34 tokens",
    ),
    "few sequences": (
        ("observe", "MODEL", "cka", "--data", "DATA", "--context", 32, "--tokens", 300),
        "cka takes at least 16 sequences",
    ),
    "no token with the suffix": (
        ("probe", "MODEL", "ing", "--suffix", "qqq", "--data", "DATA"),
        "no token of 257 ends in 'qqq'",
    ),
    "few positives": (
        ("probe", "MODEL", "ing", "--suffix", "x", "--data", "DATA"),
        "windows of 24 tokens that end in a wanted token; 200 are needed",
    ),
    "few words": (
        ("probe", "MODEL", "subjoiner", "--data", "DATA"),
        "of 4 tokens after enough text; 40 are needed",
    ),
    "no pairs": (("probe", "MODEL", "wic", "--data", "./none"), "there is no directory './none'"),
    "no items": (("tasks", "MODEL", "piqa", "--task-data", "."), "there is no piqa.jsonl in"),
    "no file": (("show", "none.nc"), "there is no file none.nc"),
    "no NetCDF": (("show", "latin.txt"), "is not a NetCDF file"),
    "not ours": (("plot", "other.nc"), "not one that stages wrote"),
    "newer": (("show", "newer.nc"), "schema 99"),
    "no figure": (("plot", "ours.nc", "--out", "a.txt"), "must end in .png"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_one_line_and_status_1(run, llama, stories, case):
    words, expected = REFUSALS[case]
    T5Config().save_pretrained("T5")
    Path("empty.txt").write_text("")
    Path("latin.txt").write_bytes(b"caf\xe9")
    xr.Dataset({"x": 1}).to_netcdf("other.nc")
    xr.Dataset(attrs={"stages_schema": 99}).to_netcdf("newer.nc")
    if case == "no figure":
        run("sweep", llama, "--data", stories, "--context", 32, "--out", "ours.nc")
    before = sorted(Path().rglob("*"))
    known = {"MODEL": llama, "DATA": stories}
    code, out, err = run(*(known.get(str(word), word) for word in words), "--quiet")
    assert (code, out) == (1, ""), err
    assert err.startswith("stages: ") and err.count("\n") == 1, err
    assert expected in err
    assert sorted(Path().rglob("*")) == before, "something was written"


@pytest.mark.slow
def test_other_settings_are_refused_by_name_and_fresh_replaces_them(run, llama, stories):
    words = ("sweep", llama, "--data", stories, "--context", 32)
    run(*words)
    code, _, err = run(*words, "--seed", 1)
    assert code == 1 and "was made with" in err and "--fresh" in err
    assert run(*words, "--seed", 1, "--fresh")[0] == 0


def test_options_that_would_be_ignored_are_misuse(run, llama, stories):
    words = ("sweep", llama, "--data", stories)
    for extra in (("--paper-compat", "--seed", 3), ("--paper-compat", "--pack")):
        code, _, err = run(*words, *extra)
        assert code == 2 and "--paper-compat goes without" in err
    code, _, err = run(*words, "--documents", 5)
    assert code == 2 and "--documents goes with --paper-compat" in err


def test_the_choices_of_the_options_are_those_of_the_model():
    options = {option.name: option for option in COMMANDS["sweep"].params}
    assert tuple(options["dtype"].type.choices) == DTYPES
    assert tuple(options["attention"].type.choices) == ATTENTION
    for form in (*FORMS, *PAIRS):
        assert form.replace("-", "_") in options or form in options["named"].help


@pytest.mark.slow
def test_running_out_of_memory_is_one_line(run, llama, stories, monkeypatch):
    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(execution, "measure_batch", out_of_memory)
    code, _, err = run("sweep", llama, "--data", stories, "--context", 32, "--quiet")
    assert code == 1 and err.startswith(
        "stages: one sequence of 32 tokens does not fit into memory"
    )
    assert err.count("\n") == 1
    monkeypatch.setattr(observation, "observe", out_of_memory)
    code, _, err = run("observe", llama, "lens", "--data", stories, "--context", 32, "--quiet")
    assert code == 1 and err.startswith("stages: out of memory: ask for --dtype bfloat16 or")
    assert err.count("\n") == 1


def test_misuse_is_status_2(run):
    assert run("sweep")[0] == 2
    assert run("sweep", "x", "--tokens", "-4")[0] == 2
    assert run("nothing")[0] == 2


@pytest.mark.slow
def test_ctrl_c_is_status_130_and_keeps_what_was_measured(llama, stories, tmp_path, monkeypatch):
    words = ["sweep", llama, "--data", stories, "--context", 32, "--batch-tokens", 1]
    measure = execution.measure_batch

    def once(*arguments):
        # Where the tests run as a job in the background, SIGINT is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        execution.measure_batch = lambda *_: os.kill(os.getpid(), signal.SIGINT)
        return measure(*arguments)

    monkeypatch.setattr(execution, "measure_batch", once)
    status, _, printed = kills.run(words, tmp_path)
    assert status == 130, printed
    assert "Traceback" not in printed and "the same command" in printed
    kept = xr.load_dataset(tmp_path / "outputs" / "tiny-llama" / "sweep.partial.nc")
    assert (
        kept.sequences_done == 1
        and int(kept.kl.notnull().any(("layer", "intervention")).sum()) == 1
    )


@pytest.mark.slow
def test_help_is_light(tmp_path):
    code = "import sys, cli\ntry: cli.main()\nexcept SystemExit: pass\nprint(sorted(sys.modules))"
    for words in (["--help"], ["sweep", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert "stages sweep" in done.stdout
        for heavy in ("torch", "nnsight", "transformers", "xarray", "numpy", "matplotlib"):
            assert f"'{heavy}'" not in done.stdout


def test_every_command_has_an_example_in_its_help(run):
    for name, command in COMMANDS.items():
        code, out, _ = run(name, "--help")
        assert code == 0 and f"stages {name}" in out.partition("Options:")[0].split("\n", 1)[1]
        assert command.help


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--intervention", "repeat-1x1000000"], "would execute 1,000,004 blocks, and 10,000"),
        (["--intervention", "repeat-2x999999999"], "would execute 2,000,000,002 blocks"),
        (["--schedule", "-".join(["0..3"] * 2501)], "10,000 blocks are executed at most"),
        (["--layers", "0..1000000000"], "there is no block 1000000000; the blocks are 0 to 3"),
        (["--layers", ""], "no layer is named"),
        (["--shard", ""], "there is no such shard"),
    ],
)
def test_more_than_can_be_planned_is_refused_at_once(run, llama, stories, words, problem):
    code, out, err = run("sweep", llama, "--data", stories, "--context", 16, "--quiet", *words)
    assert code in (1, 2) and not out and problem in err.splitlines()[-1], err
