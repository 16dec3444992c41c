"""Opening of models by commands, and the directories of their results."""

import gc
import logging
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.commands.progress import tell

if TYPE_CHECKING:
    from robustness.models.model import Model
    from robustness.models.settings import ModelSettings

LIBRARIES = "robustness.models.opening"
"""Name of the module whose import loads torch, transformers and nnsight."""

OUTPUTS = Path("outputs")
"""Default directory of everything that commands write."""


def announce(settings: "ModelSettings") -> None:
    """Say that a model is going to be opened, and load the libraries, which takes seconds."""
    tell(f"opening {settings.source}")
    if LIBRARIES not in sys.modules:
        _load_libraries()


def _load_libraries() -> None:
    """Import what opens models, without looking for garbage among millions of objects that stay."""
    gc.disable()
    try:
        import_module(LIBRARIES)
    finally:
        # Later searches leave them out, too.
        gc.freeze()
        gc.enable()


def open_model(settings: "ModelSettings") -> "Model":
    """Open a model, and print what a server says meanwhile."""
    from robustness.models.opening import open_settings

    silence_libraries()
    return open_settings(settings, notify=tell)


def directory_of(model: str) -> Path:
    """Return the directory for results on a model, given its name."""
    return OUTPUTS / model.rpartition("/")[2]


def silence_libraries() -> None:
    """Keep libraries from printing progress bars and notes of their own."""
    import datasets
    import huggingface_hub
    import transformers

    # What these two say is part of the error, if it matters.
    warnings.filterwarnings("ignore", "Module .* has a submodule named", UserWarning)
    warnings.filterwarnings("ignore", "Dynamo detected a call", UserWarning)
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for library in (transformers, datasets, huggingface_hub):
        library.utils.logging.set_verbosity_error()
