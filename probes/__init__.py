"""What can be read out of activations."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_MODULES = {
    "SubjoinerSettings": "settings",
    "SuffixSettings": "settings",
    "WicSettings": "settings",
    "probe_subjoiner": "subjoiner",
    "probe_suffix": "suffix",
    "probe_wic": "wic",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: models take seconds, and settings none."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
