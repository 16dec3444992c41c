"""A model on a server of this process, and the same model here."""

from dataclasses import replace

import pytest
import torch
from loopback import NAME, configure, serving
from transformers import AutoModelForCausalLM

from robustness.models import opening
from robustness.models.facts import Facts
from robustness.models.opening import open_model
from robustness.models.structure import find_paths
from robustness.ndif import patience
from robustness.text.corpus import cut


@pytest.fixture(scope="module")
def running(llama):
    """A hub, and a server that runs its one model in float64."""
    with serving(NAME, llama, torch.float64) as both:
        yield both


@pytest.fixture(scope="module")
def paths(llama):
    """Where the parts of the one model are, which takes longer to find than all else."""
    return find_paths(AutoModelForCausalLM.from_pretrained(llama))


@pytest.fixture
def server(running, paths, monkeypatch, tmp_path):
    """The server, with nothing wrong, as what this process is configured for."""
    monkeypatch.setattr(opening, "find_paths", lambda _: paths)
    configure(monkeypatch, *running, tmp_path / "cache")
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.0)
    return running[1]


@pytest.fixture(scope="module")
def opened(running, paths, tmp_path_factory):
    """The model, opened once, for tests that are not about that."""
    with pytest.MonkeyPatch.context() as patch:
        configure(patch, *running, tmp_path_factory.mktemp("cache"))
        patch.setattr(opening, "find_paths", lambda _: paths)
        return open_model(NAME, remote=True)


@pytest.fixture
def there(server, opened):
    """The model on the server, of which nothing but what opening found is known."""
    return replace(opened, facts=Facts())


@pytest.fixture(scope="module")
def local(llama):
    return open_model(llama, dtype="float64")


@pytest.fixture
def corpus(local, stories):
    return cut(str(stories), local.tokenizer, context=24, tokens=24 * 20)
