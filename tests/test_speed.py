import pytest
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from robustness.errors import Refusal
from robustness.pruning import speed
from robustness.schedules import Mlp


@pytest.fixture
def called(monkeypatch):
    """Calls of blocks, each of which takes a second of the clock; tokens of each call."""
    calls: list[int] = []
    forward = GPT2Block.forward

    def counted(self, hidden, *args, **kwargs):
        calls.append(hidden.shape[1])
        return forward(self, hidden, *args, **kwargs)

    monkeypatch.setattr(GPT2Block, "forward", counted)
    monkeypatch.setattr(speed, "perf_counter", lambda: float(len(calls)))
    monkeypatch.setattr("robustness.reordered.rebuilding.compare", lambda *_: None)
    return calls


def test_a_token_takes_as_long_as_its_blocks(gpt2, called):
    times = speed.measure(gpt2, (0, 3), prompt=8, written=4, repetitions=3)
    assert times.sizes == {"version": 2, "phase": 2, "repetition": 3}
    for version, blocks in (("before", 4), ("after", 2)):
        of = times.sel(version=version)
        assert (of.sel(phase="prefill") == 1000 * blocks / 8).all()
        assert (of.sel(phase="decode") == 1000 * blocks).all()


def test_decode_reads_one_token_at_a_time_and_the_two_take_turns(gpt2, called):
    speed.measure(gpt2, (0, 3), prompt=8, written=3, repetitions=3)
    before, after = [8] * 4 + [1] * 8, [8] * 2 + [1] * 4
    assert called == after + before + before + after + after + before + before + after


def test_the_first_round_is_not_counted(gpt2, called, monkeypatch):
    # 18 calls of blocks, each of which takes ten seconds more than those that follow.
    monkeypatch.setattr(speed, "perf_counter", lambda: len(called) + 10.0 * min(len(called), 18))
    times = speed.measure(gpt2, (0, 3), prompt=8, written=3, repetitions=1)
    assert times.sel(phase="decode").values.tolist() == [[4000], [2000]]


def test_prompt_and_text_fit_the_context(gpt2, called):
    times = speed.measure(gpt2, (0,), prompt=100, written=100, repetitions=1)
    assert gpt2.context == 32 and called.count(16) == 2 * 5
    assert "16 of a prompt, 16 written" in times.attrs["long_name"]


def test_what_no_plain_model_runs_has_no_speed(gpt2):
    with pytest.raises(Refusal, match="m1 is no whole block"):
        speed.measure(gpt2, (0, Mlp(1)))
