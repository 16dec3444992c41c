"""Text: sources of documents, and token sequences cut from them."""

from typing import TYPE_CHECKING

from robustness.faces import lazy_face

if TYPE_CHECKING:
    from robustness.text.corpus import Corpus, cut, read_text
    from robustness.text.settings import TextSettings

__all__ = ["Corpus", "TextSettings", "cut", "read_text"]

# What reads data sets takes seconds, and settings none.
__getattr__ = lazy_face(
    __name__,
    {
        "Corpus": "corpus",
        "TextSettings": "settings",
        "cut": "corpus",
        "read_text": "corpus",
    },
)
