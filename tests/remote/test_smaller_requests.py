"""Requests that a server has too little memory or time for are sent again in smaller portions."""

import numpy as np
import pytest

from robustness.measurements.observation import observe
from robustness.ndif.room import Room
from robustness.runs.settings import RunOptions
from robustness.sweeps import sweep

FAILURES = {
    "out_of_memory": 'error: Traceback (most recent call last):\n  File "x.py", line 1, in run\n'
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    "out_of_time": "error: Your job exceeded the execution timeout of 30.0s.",
}


@pytest.mark.slow
@pytest.mark.parametrize("attribute", FAILURES)
def test_a_sweep_and_an_observation_go_on_with_half(server, there, local, corpus, attribute):
    text, told = corpus.part(slice(0, 4)), []
    # What is found out before the first batch takes requests too.
    observe(there, text, ["norms"])
    server.faults += [FAILURES[attribute]]
    options = RunOptions(batch_tokens=24 * 4, tell=told.append)
    watched = observe(there, text, ["norms"], options)["norms"]

    def fail(done, _total):
        """Fail the first batch, which comes after the floor was measured."""
        server.faults += [] if done else [FAILURES[attribute]]

    found = sweep(there, text, ("drop",), batch_tokens=24 * 4, state_cap=1, progress=fail)
    for data in (watched, found):
        assert data.attrs[attribute] == "from sequence 0 on 2 sequence(s) at once"
        assert not (FAILURES.keys() - {attribute}) & data.attrs.keys()
    assert sum("from here on 2 sequence(s)" in said for said in told) == 1
    seen = observe(local, text, ["norms"])["norms"]
    np.testing.assert_allclose(watched.residual_norm, seen.residual_norm, rtol=1e-6)
    whole = sweep(local, text, ("drop",))
    for name in ("kl", "loss", "clean_loss"):
        np.testing.assert_allclose(found[name], whole[name], atol=1e-6, err_msg=name)
    assert found.requests_per_batch == 1 and not server.faults


def test_an_opened_model_knows_the_room_of_its_server(there):
    room = there.request["backend"].room
    parameters = sum(weight.numel() for weight in there.traced._module.parameters())
    # The loopback server says the type alone, and NDIF assigns 15 % more and 500 MiB.
    assert room == Room(int(8 * parameters * 0.15 + 500 * 2**20), cards=1)
    assert there.request["backend"].expecting(1).room is room
