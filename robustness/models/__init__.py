"""Models: how they are opened and checked, their parts, their weights and checkpoints."""

from typing import TYPE_CHECKING

from robustness.faces import lazy_face

if TYPE_CHECKING:
    from robustness.models.model import Model
    from robustness.models.opening import open_model, open_settings
    from robustness.models.settings import ModelSettings

__all__ = ["Model", "ModelSettings", "open_model", "open_settings"]

# nnsight takes seconds to import, settings take none.
__getattr__ = lazy_face(
    __name__,
    {
        "Model": "model",
        "ModelSettings": "settings",
        "open_model": "opening",
        "open_settings": "opening",
    },
)
