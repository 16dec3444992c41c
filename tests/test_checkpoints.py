"""Real checkpoints against published values: `HF_HUB_OFFLINE=0 pytest -m hub`, with a network."""

import json
from math import isnan
from pathlib import Path

import pytest

from recipes.evidence import published
from recipes.evidence.files import Files
from recipes.paper_models import PAPER
from recipes.recipe import ATTENTION, LENS, NEURONS, SUBJOINER, SUFFIX, WIC
from robustness.files.netcdf import save
from robustness.measurements.observation import observe
from robustness.measurements.prediction_neurons import neurons
from robustness.models.opening import open_model
from robustness.runs.settings import RunOptions
from robustness.text.corpus import first_documents
from robustness.text.sources import documents

PILE = "EleutherAI/the_pile_deduplicated"

REPOSITORIES = {
    **{model.name.rpartition("/")[2]: model.name for model in PAPER},
    "pythia-160m": "EleutherAI/pythia-160m",
    "arwen-gpt2-medium-x21": "stanford-crfm/arwen-gpt2-medium-x21",
    "Llama-2-7b-hf": "meta-llama/Llama-2-7b-hf",
}
"""Where the models of published values are."""


def test_every_published_value_is_of_a_model_that_can_be_found():
    assert {each.model for each in published.PUBLISHED} <= REPOSITORIES.keys()


@pytest.mark.hub
@pytest.mark.parametrize(
    "record", published.PUBLISHED, ids=lambda each: f"{each.model}, {each.quantity}"
)
def test_a_real_checkpoint_has_the_published_values(record, tmp_path, run):
    repository = REPOSITORIES[record.model]
    directory = tmp_path / record.model
    if record.source == NEURONS:
        neurons(repository, options=RunOptions(out=directory / "neurons.nc"))
    elif record.source in {LENS, ATTENTION}:
        _observe(record, repository, directory)
    elif record.source in {SUFFIX, SUBJOINER, WIC}:
        task = record.source.file
        data = {"wic": "super_glue:wic"}.get(task, PILE)
        code, _, err = run("probe", repository, task, "--data", data, "--out",
                           directory / f"{task}.nc", "--quiet")  # fmt: skip
        assert code == 0, err
    here = record.measured(Files(directory))
    for place, value in record.values.items():
        if isnan(record.tolerance):
            assert place in here
        else:
            assert here[place] == pytest.approx(value, abs=record.tolerance), place


def _observe(record: published.Published, repository: str, directory: Path) -> None:
    """Measure on the documents that the authors read, cut off where they cut them."""
    model = open_model(repository)
    lens = record.source == LENS
    texts = [text[: 500 if lens else None] for _, text in zip(range(10 if lens else 100), _pile())]
    source = directory.with_suffix(".jsonl")
    save_texts(texts, source)
    limit = 500 if record.model.startswith("gpt2") else 2048
    context = min(limit, model.context or limit)
    corpus = first_documents(source, model.tokenizer, context=context, count=len(texts))
    for dataset in observe(model, corpus, [record.source.file]).values():
        save(dataset, directory / f"{record.source.file}.nc")


def _pile():
    return (text for _, text in documents(PILE))


def save_texts(texts: list[str], path: Path) -> None:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n")


@pytest.mark.slow
def test_what_is_measured_for_a_comparison_is_measured(tmp_path, monkeypatch):
    """The way to it, on the built-in model and text, whose values were published nowhere."""
    monkeypatch.setattr("test_checkpoints._pile", lambda: (t for _, t in documents("builtin")))
    for quantity in ("entropy of the frozen lens", "local attention"):
        record = published.find("gpt2", quantity)
        directory = tmp_path / quantity.replace(" ", "-")
        _observe(record, "builtin", directory)
        assert set(record.measured(Files(directory))) >= set(record.values)
