"""Every recipe, in the paper's order, and every figure of the paper."""

from collections.abc import Sequence

from recipes.experiments import (
    benchmarks,
    drop_and_swap,
    hypothesis,
    lens_entropy,
    local_attention,
    mlp_norm,
    norm_ratio,
    prediction_neurons,
    repetition,
    representations,
    similarity,
    subjoiner,
    suffix,
    word_in_context,
)
from recipes.recipe import Picture, Recipe
from robustness.errors import Refusal

RECIPES: tuple[Recipe, ...] = (
    drop_and_swap.RECIPE,
    representations.RECIPE,
    local_attention.RECIPE,
    subjoiner.RECIPE,
    norm_ratio.RECIPE,
    word_in_context.RECIPE,
    lens_entropy.RECIPE,
    prediction_neurons.RECIPE,
    suffix.RECIPE,
    mlp_norm.RECIPE,
    repetition.RECIPE,
    benchmarks.RECIPE,
    similarity.RECIPE,
    hypothesis.RECIPE,
)
"""The experiments."""


def choose(names: Sequence[str]) -> tuple[Recipe, ...]:
    """Return the recipes of some names, or all of them without any.

    Raises
    ------
    Refusal
        If there is no such experiment.
    """
    there = {recipe.name: recipe for recipe in RECIPES}
    for name in names:
        if name.upper() not in there:
            raise Refusal(f"there is no experiment {name!r}; there are: {', '.join(there)}")
    return tuple(there[name] for name in dict.fromkeys(map(str.upper, names))) or RECIPES


PICTURES: dict[str, Picture] = {
    name: picture for recipe in RECIPES for picture in recipe.pictures for name in picture.names
}
"""Every figure by its number; the first version's are `v1 2` to `v1 10`."""
