import signal
from functools import partial
from pathlib import Path

import kills
import numpy as np
import pytest
import xarray as xr
from test_execution import corpus

from robustness.errors import Refusal
from robustness.files import netcdf, output, resumable
from robustness.schedules import clean, swap
from robustness.sweeps import sweep, token_layout, token_merging
from robustness.sweeps.merging import merge
from robustness.sweeps.shards import Shard, parse_shard

BATCH = 24
"""Two sequences of twelve tokens."""


def run_shards(model, text, directory, count, **options):
    files = []
    for index in range(1, count + 1):
        one = Shard(index, count)
        files.append(one.beside(directory / "sweep.nc"))
        sweep(model, text, shard=one, batch_tokens=BATCH, out=files[-1], **options)
    return files


def assert_same_bits(one, other):
    assert set(one.variables) == set(other.variables)
    for name in one.variables:
        assert one[name].dims == other[name].dims, name
        assert one[name].attrs == other[name].attrs, name
        if name in ("schedule", "intervention"):  # as text, which a file gives back otherwise
            assert one[name].values.tolist() == other[name].values.tolist(), name
        else:
            assert one[name].values.tobytes() == other[name].values.tobytes(), name


@pytest.mark.parametrize("text", ["1/1", "1/4", "4/4", "12/345"])
def test_a_shard_is_read_and_written(text):
    assert str(parse_shard(text)) == text


@pytest.mark.parametrize(
    "text", ["9/8", "0/4", "x", "1/0", "1", "1/", "-1/4", "1/4/4", "1.5/2", ""]
)
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(Refusal, match=r"there is no such shard; the first of [1-9]"):
        parse_shard(text)


@pytest.mark.parametrize("batches", range(1, 12))
@pytest.mark.parametrize("count", range(1, 6))
def test_shards_are_whole_batches_each_once_and_about_as_many(batches, count):
    parts = [slice(at, at + 3) for at in range(0, 3 * batches, 3)]
    if count > batches:
        with pytest.raises(Refusal, match=f"{count} shards were asked for, and the run has"):
            Shard(1, count).rows(parts)
        return
    rows = [Shard(index, count).rows(parts) for index in range(1, count + 1)]
    sequences = [at for each in rows for at in range(each.start, each.stop)]
    assert sequences == list(range(3 * batches))
    sizes = {(each.stop - each.start) // 3 for each in rows}
    assert max(sizes) - min(sizes) <= 1 and all(each.start % 3 == 0 for each in rows)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_merged_shards_are_the_unsharded_run_bit_for_bit(family, model, tmp_path, count):
    text = corpus(sequences=7)
    whole = sweep(model, text, batch_tokens=BATCH, command="stages sweep x")
    files = run_shards(model, text, tmp_path, count)
    assert [file.name for file in files][-1] == f"sweep.shard-{count}-of-{count}.nc"
    merged = merge(files[::-1], tmp_path / "sweep.nc", command="stages merge")
    assert_same_bits(whole, merged)
    assert_same_bits(whole, netcdf.load(tmp_path / "sweep.nc"))
    differing = {name for name in whole.attrs if whole.attrs[name] != merged.attrs.get(name)}
    assert differing <= {"created", "command"}
    assert merged.attrs.keys() - whole.attrs.keys() == {"shards_created", "shards_command"}
    assert merged.shards_command.split("; ") == ["python"] * count
    assert {file.name for file in tmp_path.iterdir()} == {"sweep.nc", *(f.name for f in files)}


@pytest.mark.slow
def test_shards_of_free_schedules_and_of_documents_of_several_lengths(gpt2, tmp_path):
    text = corpus(sequences=6, lengths=[12, 7, 3, 12, 9, 5])
    schedules = [clean(4), swap(clean(4), 0), (3, 3)]
    whole = sweep(gpt2, text, schedules=schedules, batch_tokens=BATCH)
    files = run_shards(gpt2, text, tmp_path, 3, schedules=schedules)
    assert_same_bits(whole, merge(files))


def test_a_document_in_two_shards_stays_one_document(gpt2, tmp_path):
    text = corpus(sequences=6)
    text.document[:] = [5, 5, 5, 7, 7, 9]
    first, second = map(netcdf.load, run_shards(gpt2, text, tmp_path, 2))
    assert first.document.values.tolist() == [5, 5] and first.sequence.values.tolist() == [0, 1]
    assert second.document.values.tolist() == [5, 7, 7, 9]
    assert (second.attrs["shard"], second.sequences, second.corpus_sequences) == ("2/2", 4, 6)
    assert (second.tokens, second.corpus_tokens) == (48, 72)


@pytest.mark.slow
def test_the_unsharded_command_finds_its_run_done_when_shards_are_merged(gpt2, tmp_path):
    text, path = corpus(sequences=6), tmp_path / "sweep.nc"
    merged = merge(run_shards(gpt2, text, tmp_path, 2), path)
    stamp = path.stat().st_mtime_ns
    xr.testing.assert_identical(sweep(gpt2, text, batch_tokens=BATCH, out=path), merged)
    assert path.stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_tokens_of_shards_are_merged_too_bit_for_bit(gpt2, tmp_path, monkeypatch):
    monkeypatch.setattr(token_merging, "SEQUENCES_COPIED", 2)
    text, path = corpus(sequences=7), tmp_path / "sweep.nc"
    options = {"per_token": True, "batch_tokens": BATCH}
    whole = tmp_path / "whole" / "sweep.nc"
    sweep(gpt2, text, out=whole, **options)
    files = run_shards(gpt2, text, tmp_path, 2, per_token=True)
    merge([*files, token_layout.beside(files[0])], path)  # as a pattern of names finds them
    one, other = (xr.load_dataset(token_layout.beside(file)) for file in (whole, path))
    assert_same_bits(one, other)
    sweep(gpt2, text, out=path, **options)  # finds its run done


@pytest.mark.slow
def test_tokens_that_are_missing_are_missed(gpt2, tmp_path):
    files = run_shards(gpt2, corpus(sequences=7), tmp_path, 2, per_token=True)
    tokens = token_layout.beside(files[1])
    with pytest.raises(Refusal, match=r"shard-2-of-2\.tokens\.nc holds single tokens: give"):
        merge([files[0], tokens])
    tokens.unlink()
    with pytest.raises(Refusal, match=r"shard-2-of-2\.tokens\.nc is not there: run the command of"):
        merge(files, tmp_path / "sweep.nc")
    assert not (tmp_path / "sweep.nc").exists()


@pytest.mark.slow
def test_what_an_interrupted_merge_left_is_not_gone_on_with(gpt2, tmp_path, monkeypatch):
    """The shards may have been made anew since."""
    files, path = run_shards(gpt2, corpus(sequences=7), tmp_path, 2), tmp_path / "sweep.nc"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resumable.Run, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            merge(files, path)
    assert not path.exists() and (tmp_path / "sweep.partial.nc").exists()
    data = netcdf.load(files[1])
    data["kl"] += 1
    netcdf.save(data, files[1], netcdf.load_tally(files[1]))
    merge(files, path)
    np.testing.assert_array_equal(netcdf.load(path).kl[..., -1], data.kl[..., -1])


@pytest.mark.slow
def test_a_merge_keeps_tokens_in_step_with_the_whole(gpt2, tmp_path):
    text, path = corpus(sequences=7), tmp_path / "sweep.nc"
    tokens, torn = token_layout.beside(path), tmp_path / ".sweep.tokens.nc.1.writing"
    files = run_shards(gpt2, text, tmp_path, 2, per_token=True)
    torn.write_bytes(b"x")
    merge(files, path)
    tokens.unlink()
    merge(files, path)
    assert tokens.exists() and not torn.exists()
    (tmp_path / "plain").mkdir()
    merge(run_shards(gpt2, text, tmp_path / "plain", 2), path, fresh=True)
    assert not tokens.exists(), "it is of another run"
    with pytest.raises(Refusal, match="is one of the shards"):
        merge(files, files[0], fresh=True)


@pytest.mark.slow
def test_merging_what_does_not_belong_together_is_refused_by_name(gpt2, tmp_path):
    text, out = corpus(sequences=6), tmp_path / "sweep.nc"
    one, two, three = run_shards(gpt2, text, tmp_path, 3)

    def refused(files, expected):
        with pytest.raises(Refusal, match=expected):
            merge(files, out)
        assert not out.exists()

    refused([one, three], r"shard 2/3 is missing: give all 3 files")
    refused([three], r"shard 1/3, 2/3 is missing")
    again = tmp_path / "again.nc"
    netcdf.save(netcdf.load(two), again, netcdf.load_tally(two))
    refused([one, two, three, again], r"shard 2/3 is there twice: .*2-of-3\.nc and .*again\.nc")
    refused([one, two, three, two], r"shard-2-of-3\.nc was given twice")
    refused([one, two, tmp_path / "none.nc"], r"there is no file .*none\.nc")
    whole = tmp_path / "whole.nc"
    sweep(gpt2, text, batch_tokens=BATCH, out=whole)
    refused([one, two, whole], r"whole\.nc is no shard")
    (tmp_path / "half").mkdir()
    half = run_shards(gpt2, text, tmp_path / "half", 2)[1]
    refused([one, half], r"the files are shards of 2 and of 3")
    (tmp_path / "other").mkdir()
    other = run_shards(gpt2, text, tmp_path / "other", 3, state_cap=1)[1]
    refused([one, other, three], r"are not of one run: state_cap is \d+ in the first and 1 in the")
    netcdf.save(netcdf.load(two).assign_attrs(versions="torch 1.0"), again)
    refused([one, again, three], r"are not of one run: versions is")
    netcdf.save(netcdf.load(two), again)
    refused(
        [one, again, three],
        r"again\.nc is damaged or changed: .*`fresh` \(its counts are missing\)",
    )
    netcdf.save(netcdf.load(two), again, netcdf.load_tally(two)[::-1])
    refused(
        [one, again, three],
        r"again\.nc is damaged or changed: .* \(its counts do not give its modal_share",
    )


@pytest.mark.slow
def test_a_shard_that_is_not_finished_is_refused_by_name(gpt2, tmp_path):
    text = corpus(sequences=6)
    one, two = run_shards(gpt2, text, tmp_path, 2)
    two.unlink()

    def stop(done, _total):
        if done == 2:
            raise KeyboardInterrupt

    options = {"shard": Shard(2, 2), "batch_tokens": BATCH, "out": two}
    with pytest.raises(KeyboardInterrupt):
        sweep(gpt2, text, progress=stop, **options)
    with pytest.raises(Refusal, match=r"2-of-2\.partial\.nc is not finished \(2 of 4 sequences\)"):
        merge([one, two])
    sweep(gpt2, text, **options)
    assert_same_bits(merge([one, two]), sweep(gpt2, text, batch_tokens=BATCH))


@pytest.mark.slow
def test_a_file_of_something_else_is_not_merged_over(gpt2, tmp_path):
    text, out = corpus(sequences=6), tmp_path / "sweep.nc"
    files = run_shards(gpt2, text, tmp_path, 2)
    sweep(gpt2, text, ("drop",), batch_tokens=BATCH, out=out)
    with pytest.raises(Refusal, match=r"was made with interventions drop, not drop, swap.*`fresh`"):
        merge(files, out)
    assert merge(files, out, fresh=True).interventions == "drop, swap"


@pytest.mark.slow
def test_a_shard_is_asked_for_and_merged_on_the_command_line(run, llama, stories):
    words = ["sweep", llama, "--data", stories, "--context", 32, "--tokens", 320]
    words += ["--batch-tokens", 64]
    for index in (1, 2):
        expected = f"outputs/tiny-llama/sweep.shard-{index}-of-2.nc\n"
        assert run(*words, "--shard", f"{index}/2")[:2] == (0, expected)
    shards = sorted(Path("outputs/tiny-llama").glob("*shard*"))
    code, out, err = run("merge", *shards, "-o", "whole.nc")
    assert (code, out) == (0, "whole.nc\n"), err
    assert run(*words, "--out", "unsharded.nc")[0] == 0
    assert_same_bits(netcdf.load(Path("whole.nc")), netcdf.load(Path("unsharded.nc")))
    assert netcdf.load(Path("whole.nc")).command.startswith("stages merge sweep.shard-1-of-2.nc")
    assert "8 sequences" not in run("show", shards[0])[1] and run("plot", shards[0])[0] == 0
    for text in ("9/8", "0/4", "x"):
        code, _, err = run(*words, "--shard", text)
        assert code == 2 and f"--shard {text}: there is no such shard" in err
    code, _, err = run(*words, "--shard", "1/2", "--until-se", 0.1)
    assert code == 2 and "a shard cannot tell when all shards have enough" in err
    code, _, err = run(*words, "--shard", "1/9")
    assert code == 1 and "9 shards were asked for, and the run has 5 batch(es)" in err
    code, _, err = run("merge", shards[0], "-o", "new.nc")
    assert code == 1 and "shard 2/2 is missing" in err and not Path("new.nc").exists()


@pytest.mark.slow
def test_shares_come_from_the_sums_of_counts_and_not_from_means_of_shares(gpt2, tmp_path):
    text = corpus(sequences=6)
    files = run_shards(gpt2, text, tmp_path, 3)
    tallies = [netcdf.load_tally(file) for file in files]
    total = np.sum(tallies, axis=0)
    found = merge(files).modal_share.values
    counted = total.max(1) / total.sum(1)
    np.testing.assert_array_equal(found[~np.isnan(found)], counted)
    means = np.mean([tally.max(1) / tally.sum(1) for tally in tallies], axis=0)
    assert np.abs(means - counted).max() > 1e-3


@pytest.mark.slow
def test_a_shard_that_is_killed_twice_changes_nothing(gpt2, tmp_path):
    path, text = tmp_path / "two.nc", corpus(sequences=12)

    def run_until_killed(batches):
        kills.die_after(batches)
        # What is done is saved after every batch, however long that takes.
        output.SAVING_SHARE = float("inf")
        sweep(gpt2, text, batch_tokens=BATCH, shard=Shard(2, 2), out=path)

    codes = [kills.fork(partial(run_until_killed, batches)) for batches in (1, 1, 99)]
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    sweep(gpt2, text, batch_tokens=BATCH, shard=Shard(1, 2), out=tmp_path / "one.nc")
    merged = merge([tmp_path / "one.nc", path])
    assert_same_bits(merged, sweep(gpt2, text, batch_tokens=BATCH))


def test_a_shard_is_not_judged_as_if_it_were_the_whole(gpt2, tmp_path):
    from recipes.evidence.files import Files
    from recipes.recipe import SWEEP

    sweep(
        gpt2, corpus(sequences=6), batch_tokens=BATCH, shard=Shard(1, 2), out=tmp_path / "sweep.nc"
    )
    assert Files(tmp_path).missing(SWEEP) == "sweep.nc is shard 1/2: merge all of them"
