"""What can be read out of activations."""

from typing import TYPE_CHECKING

from robustness.faces import lazy_face

if TYPE_CHECKING:
    from probes.settings import SubjoinerSettings, SuffixSettings, WicSettings
    from probes.subjoiner import probe_subjoiner
    from probes.suffix import probe_suffix
    from probes.wic import probe_wic

__all__ = [
    "SubjoinerSettings",
    "SuffixSettings",
    "WicSettings",
    "probe_subjoiner",
    "probe_suffix",
    "probe_wic",
]

# Models take seconds, and settings none.
__getattr__ = lazy_face(
    __name__,
    {
        "SubjoinerSettings": "settings",
        "SuffixSettings": "settings",
        "WicSettings": "settings",
        "probe_subjoiner": "subjoiner",
        "probe_suffix": "suffix",
        "probe_wic": "wic",
    },
)
