"""Text: sources of documents, and token sequences cut from them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustness.text.corpus import Corpus, cut, read_text
    from robustness.text.settings import TextSettings

__all__ = ["Corpus", "TextSettings", "cut", "read_text"]

_MODULES = {
    "Corpus": "corpus",
    "TextSettings": "settings",
    "cut": "corpus",
    "read_text": "corpus",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: what reads data sets takes seconds, and settings none."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
