"""A run may go on with other batches than it began with; its file says from where on."""

import numpy as np
import pytest
import xarray as xr
from test_execution import corpus

from robustness.errors import OtherSettings
from robustness.files import changes, netcdf
from robustness.files.sequences import measured_sequences
from robustness.measurements.observation import observe
from robustness.runs.settings import RunOptions
from robustness.sweeps import sweep
from robustness.sweeps.merging import merge
from robustness.sweeps.shards import Shard

LENGTH = 12


def until(done):
    """Return a progress that interrupts a run."""

    def stop(count, _total):
        if count >= done:
            raise KeyboardInterrupt

    return stop


def interrupted(done, run, **options):
    with pytest.raises(KeyboardInterrupt):
        run(progress=until(done), **options)


def assert_close(found, expected):
    for name in expected.data_vars:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-10, err_msg=name)


@pytest.fixture
def text():
    return corpus(sequences=24)


@pytest.fixture
def swept(gpt2, text, tmp_path):
    def run(**options):
        return sweep(gpt2, text, ("drop",), **{"out": tmp_path / "a.nc", **options})

    return run


@pytest.mark.slow
@pytest.mark.parametrize("per_token", [False, True])
def test_a_sweep_goes_on_with_fewer_and_with_more_tokens_in_a_batch(
    gpt2, text, swept, tmp_path, per_token
):
    whole = sweep(gpt2, text, ("drop",), batch_tokens=8 * LENGTH)
    interrupted(8, swept, batch_tokens=8 * LENGTH, per_token=per_token)
    interrupted(14, swept, batch_tokens=3 * LENGTH, state_cap=2, per_token=per_token)
    found = swept(batch_tokens=100 * LENGTH, state_cap=2, per_token=per_token)
    assert_close(found, whole)
    assert found.batch_tokens == 8 * LENGTH and found.state_cap == whole.state_cap
    assert found.batches_changed == (
        f"from sequence 8 on batch_tokens {3 * LENGTH}, state_cap 2; "
        f"from sequence 15 on batch_tokens {100 * LENGTH}"
    )
    xr.testing.assert_identical(found, netcdf.load(tmp_path / "a.nc"))
    if per_token:
        tokens = netcdf.load(tmp_path / "a.tokens.nc")
        means = measured_sequences(tokens)
        np.testing.assert_allclose(means.kl, whole.kl, atol=1e-10)
        assert tokens.batches_changed == found.batches_changed


@pytest.mark.slow
def test_parts_of_tokens_that_a_killed_run_left_behind_are_not_mixed_with_those_of_other_batches(
    gpt2, text, swept, tmp_path, monkeypatch
):
    """A part is written before the run says that its sequences are done."""
    interrupted(16, swept, batch_tokens=4 * LENGTH, per_token=True)
    behind = netcdf.load(tmp_path / "a.partial.nc").assign_attrs(sequences_done=4)
    netcdf.save(behind, tmp_path / "a.partial.nc", netcdf.load_tally(tmp_path / "a.partial.nc"))
    swept(batch_tokens=9 * LENGTH, per_token=True)
    whole = sweep(gpt2, text, ("drop",))
    means = measured_sequences(netcdf.load(tmp_path / "a.tokens.nc"))
    np.testing.assert_allclose(means.kl, whole.kl, atol=1e-10)


def test_the_same_command_says_nothing_of_batches_and_gives_the_same_bits(gpt2, text, swept):
    interrupted(8, swept, batch_tokens=4 * LENGTH)
    found = swept(batch_tokens=4 * LENGTH)
    assert changes.CHANGED not in found.attrs
    xr.testing.assert_equal(found, sweep(gpt2, text, ("drop",), batch_tokens=4 * LENGTH))


def test_a_finished_run_is_not_made_again_for_other_batches(swept, tmp_path):
    whole = swept(batch_tokens=8 * LENGTH)
    stamp = (tmp_path / "a.nc").stat().st_mtime_ns
    xr.testing.assert_identical(swept(batch_tokens=LENGTH, state_cap=1), whole)
    assert (tmp_path / "a.nc").stat().st_mtime_ns == stamp


def test_other_settings_are_refused_whatever_the_batches_are(gpt2, text, swept, tmp_path):
    interrupted(8, swept, batch_tokens=8 * LENGTH)
    with pytest.raises(OtherSettings, match="was made with interventions drop, not swap"):
        sweep(gpt2, text, ("swap",), batch_tokens=LENGTH, out=tmp_path / "a.nc")


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then", "done"), [(4, 16, [16, 20]), (16, 4, [32, 32])])
def test_what_is_observed_goes_on_with_other_batches(gpt2, tmp_path, first, then, done):
    """In groups of 16 sequences, of which CKA counts whole ones alone."""
    text = corpus(sequences=40)

    def run(**options):
        return observe(gpt2, text, ("norms", "cka"), RunOptions(out=tmp_path, **options))

    whole = observe(gpt2, text, ("norms", "cka"))
    interrupted(20, run, batch_tokens=first * LENGTH)
    assert done == [netcdf.load(file).sequences_done for file in sorted(tmp_path.iterdir())]
    found = run(batch_tokens=then * LENGTH)
    for name, data in whole.items():
        assert_close(found[name], data)
        assert found[name].batch_tokens == first * LENGTH
    notes = [found[name].batches_changed for name in ("cka", "norms")]
    assert notes == [f"from sequence {count} on batch_tokens {then * LENGTH}" for count in done]


@pytest.mark.slow
def test_a_run_that_stops_by_itself_goes_on_with_other_batches_and_further(gpt2, tmp_path):
    text = corpus(sequences=80)
    path = tmp_path / "a.nc"
    sweep(gpt2, text, ("drop",), batch_tokens=8 * LENGTH, until_se=1e6, out=path)
    found = sweep(gpt2, text, ("drop",), batch_tokens=3 * LENGTH, out=path)
    assert_close(found, sweep(gpt2, text, ("drop",)))
    assert found.batch_tokens == 8 * LENGTH
    assert found.batches_changed.startswith("from sequence 64 on batch_tokens 36")


@pytest.mark.slow
def test_a_shard_that_went_on_with_other_batches_is_still_that_shard(gpt2, text, tmp_path):
    """Four sequences a batch are six batches, divided 4 to 2; three a batch would be eight."""
    files = [tmp_path / f"{index}.nc" for index in (1, 2, 3, 4)]

    def run(index, **options):
        shard = Shard(index, 4)
        return sweep(gpt2, text, ("drop",), shard=shard, out=files[index - 1], **options)

    whole = sweep(gpt2, text, ("drop",), batch_tokens=4 * LENGTH)
    for index in (1, 3, 4):
        run(index, batch_tokens=4 * LENGTH)
    interrupted(4, lambda **options: run(2, **options), batch_tokens=4 * LENGTH)
    found = run(2, batch_tokens=3 * LENGTH)
    assert found.sequence.values.tolist() == list(range(4, 12))
    assert found.batches_changed.startswith("from sequence 4 on batch_tokens 36")
    merged = merge(files)
    assert merged.batch_tokens == 4 * LENGTH
    assert merged.batches_changed == f"shard 2/4: {found.batches_changed}"
    assert_close(merged, whole)
    unlike = merged.kl.values != whole.kl.values
    assert not unlike[..., :8].any() and not unlike[..., 12:].any(), "the others are bit for bit"
    run(2, batch_tokens=LENGTH)
    merge(files)


def test_shards_that_began_with_other_batches_are_not_of_one_run(gpt2, text, tmp_path):
    files = [tmp_path / f"{index}.nc" for index in (1, 2)]
    for index, tokens in ((1, 4 * LENGTH), (2, 3 * LENGTH)):
        options = {"shard": Shard(index, 2), "batch_tokens": tokens, "state_cap": 1}
        sweep(gpt2, text, ("drop",), out=files[index - 1], **options)
    with pytest.raises(OtherSettings, match="batch_tokens is 48 in the first and 36 in the second"):
        merge(files)


def test_notes_that_are_none_are_passed_over():
    found = {"batch_tokens": "many", "state_cap": 3, changes.CHANGED: "from sequence x on y; z"}
    wanted = {"batch_tokens": 24, "state_cap": 3}
    carried = changes.carried(found, wanted, 5)
    assert carried[changes.CHANGED].endswith("; from sequence 5 on batch_tokens 24")
    assert changes.lowered({changes.LOST: "nothing to read"}) == ""
    late = {
        changes.LATE: "from sequence 3 on 2 sequence(s) at once",
        changes.LOST: "from sequence 4 on state cap 1",
    }
    assert changes.lowered(late) == "state cap 1; 2 sequence(s) at once"
    # Before requests were recorded, a batch was one.
    asked = {"batch_tokens": 24, "state_cap": 3}
    assert changes.CHANGED not in changes.carried(asked, asked | {changes.REQUESTS: 1}, 5)
    noted = changes.carried(asked, asked | {changes.REQUESTS: 4}, 5)[changes.CHANGED]
    assert noted == "from sequence 5 on requests_per_batch 4"
    assert changes.began_with(found) is changes.began_with({}) is None
    assert changes.began_with(wanted) == 24
