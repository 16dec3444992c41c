"""Pruning: which blocks, attentions or MLPs a model can lose, at what cost, and how sure."""

from typing import TYPE_CHECKING

from robustness.faces import lazy_face

if TYPE_CHECKING:
    from robustness.pruning.search import prune
    from robustness.pruning.settings import PruningSettings
    from robustness.pruning.sizes import size_of

__all__ = ["PruningSettings", "prune", "size_of"]

# Torch takes seconds to load, and settings none.
__getattr__ = lazy_face(
    __name__, {"PruningSettings": "settings", "prune": "search", "size_of": "sizes"}
)
