"""What requests to a server will take is told before any is sent."""

import json

import pytest
from loopback import NAME

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
def test_what_does_not_fit_is_told(server, run, stories, monkeypatch):
    tight = {"n_params": 1000, "size_bytes": 8100, "gpus": 1, "execution_timeout_seconds": 1e-6}
    status = server.status
    for entry in status["deployments"].values():
        entry.update(tight)
    server.pages["/status"] = (200, json.dumps(status))
    rows = dry(run, "sweep", NAME, "--drop", "--data", stories, *TEXT)
    assert rows["fits"].startswith("no: ")
    assert "takes more than 0.1 kB" in rows["fits"] and "ends a request after" in rows["fits"]
