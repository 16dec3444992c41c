"""Training of small decoders from scratch, and of changed models towards their originals."""

from recipes.training.distillation_settings import Distillation
from recipes.training.distilling import distill
from recipes.training.pretraining import pretrain
from recipes.training.settings import Pretraining, TrainingOptions

__all__ = ["Distillation", "Pretraining", "TrainingOptions", "distill", "pretrain"]
