"""Healing without training: what is put in the place of removed blocks, fitted in one pass."""

from typing import TYPE_CHECKING

from robustness.faces import lazy_face

if TYPE_CHECKING:
    from robustness.healing.fitting import fit
    from robustness.healing.healing import HEALINGS, Healed, heal
    from robustness.healing.maps_file import save_maps
    from robustness.healing.scales import size_ratios

__all__ = ["HEALINGS", "Healed", "fit", "heal", "save_maps", "size_ratios"]

# Torch takes seconds to load.
__getattr__ = lazy_face(
    __name__,
    {
        "HEALINGS": "healing",
        "Healed": "healing",
        "fit": "fitting",
        "heal": "healing",
        "save_maps": "maps_file",
        "size_ratios": "scales",
    },
)
