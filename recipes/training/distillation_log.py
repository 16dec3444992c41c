"""Log of a distillation: its losses, and what it came to on held-out text."""

from dataclasses import asdict

import xarray as xr

from recipes.training.distillation_settings import Distillation
from recipes.training.log import coordinates
from recipes.training.state import Log
from recipes.training.text import Texts
from robustness.files.provenance import file_attributes
from robustness.models.model import Model


def to_dataset(
    log: Log, data: Texts, settings: Distillation, learner: Model, original: Model
) -> xr.Dataset:
    """Return the log of a distillation as a dataset.

    Parameters
    ----------
    log : Log
        Losses, and numbers on held-out text.
    data : Texts
        Tokens of the training and held-out texts.
    settings : Distillation
        Settings of the training.
    learner, original : Model
        The model that was trained, and its teacher.

    Returns
    -------
    Dataset
        As `recipes.training.distill` returns it.
    """
    rates = list(map(settings.rate, range(len(log["loss"]))))
    nats, of_source = {"units": "nat"}, ("evaluation", "source")
    attributes = {name: value for name, value in asdict(settings).items() if value is not None}
    models = {"model": learner.name, "architecture": learner.identity["architecture"]}
    # Settings that are left open are written as what they came to.
    chosen = {"lora": settings.lora or "none", "learning_rate": settings.learning_rate}
    return xr.Dataset(
        {
            "loss": ("step", log["loss"], {**nats, "long_name": "training loss per token"}),
            "learning_rate": ("step", rates, {"units": "1", "long_name": "learning rate"}),
            "held_out_loss": (
                of_source,
                log["held_out_loss"],
                {**nats, "long_name": "held-out loss per token"},
            ),
            "held_out_kl": (
                of_source,
                log["held_out_kl"],
                {**nats, "long_name": "held-out KL(teacher || model) per token"},
            ),
        },
        coords=coordinates(log, data),
        attrs=file_attributes(attributes | chosen | models | {"teacher": original.name}),
    )
