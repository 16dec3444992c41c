"""Training of small decoders, in the way that the built-in models were trained."""

from recipes.training.pretraining import pretrain
from recipes.training.settings import Pretraining, TrainingOptions

__all__ = ["Pretraining", "TrainingOptions", "pretrain"]
