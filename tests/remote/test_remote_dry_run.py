"""What requests to a server will take is told before any is sent."""

import json
from dataclasses import replace

import pytest
from loopback import NAME

from robustness.ndif.room import Room
from robustness.runs import request_cost
from robustness.runs.foresight import Foresight, describe_traces
from robustness.runs.request_cost import Text

TEXT = ("--tokens", 200, "--context", 24, "--batch-tokens", 96)


def dry(run, *words):
    code, out, err = run(*words, "--remote", "--dry-run", "--json")
    assert code == 0, err
    (table,) = json.loads(out)["tables"]
    return {row["what"]: row["cost"] for row in table["rows"]}


@pytest.mark.slow
@pytest.mark.parametrize("words", [("sweep", "--drop"), ("observe", "norms"), ("probe", "wic")])
def test_no_request_is_sent_but_the_checks(server, run, stories, tmp_path, words):
    command, *rest = words
    if command == "probe":
        rest += ["--batch-tokens", 1000]
    else:
        rest += ["--data", stories, *TEXT]
    rows = dry(run, command, NAME, *rest)
    # One request on opening; one more where a family's parts are examined.
    assert server.executed <= 2 and not (tmp_path / "outputs").exists()
    assert int(rows["requests"]) > 1 and rows["fits"] == "yes"
    assert "a request or less" in rows["time"] and "none" in rows["sandbox"]


@pytest.mark.slow
def test_as_many_requests_are_sent_as_were_told(server, run, stories):
    words = ("sweep", NAME, "--drop", "--data", stories, *TEXT)
    told = int(dry(run, *words)["requests"])
    asked = server.executed
    code, _, err = run(*words, "--remote")
    assert code == 0 and f"{told} requests of about" in err
    # Opening asks once.
    assert server.executed - asked == told + 1


@pytest.mark.slow
def test_what_there_is_no_time_for_is_told(server, run, stories):
    status = server.status
    for entry in status["deployments"].values():
        entry["execution_timeout_seconds"] = 1e-6
    server.pages["/status"] = (200, json.dumps(status))
    rows = dry(run, "sweep", NAME, "--drop", "--data", stories, *TEXT)
    assert rows["fits"] == "no: the server ends a request after 0.0 s"


@pytest.mark.slow
def test_what_there_is_no_memory_for_is_told(there):
    on_gpu = replace(there, identity=there.identity | {"device": "cuda"})
    cost = request_cost.of_walk(on_gpu, [], Text(2, 24, 0), 1)
    rooms = {cost.memory_bytes: "yes", cost.memory_bytes - 1: "no: a request takes more than"}
    for room, verdict in rooms.items():
        on_gpu.request["backend"].room = Room(room)
        rows = dict(describe_traces(Foresight(on_gpu, 2, 48, [cost])))
        assert rows["fits"].startswith(verdict)


@pytest.mark.slow
def test_what_the_first_request_took_is_told_once(server, run, stories):
    server.meta = {
        "runtime": 12.3,
        "max_mem_by_gpu": {"0": 3 * 10**9},
        "max_mem_pct_by_gpu": {"0": 30.0},
    }
    code, _, err = run("sweep", NAME, "--drop", "--data", stories, *TEXT, "--remote")
    line = "the first request took 12.3 s on the server, and 3 of 10 GB of its GPU"
    assert code == 0 and err.count(line) == 1
