"""Catalogue of all recipes, in the paper's order, and of all figures of the paper."""

from collections.abc import Iterator, Mapping, Sequence

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
"""Recipes of all experiments; T1 is last because it is read from the files of the others."""


def choose(names: Sequence[str]) -> tuple[Recipe, ...]:
    """Return the recipes with some names, in upper or lower case; without names, all recipes.

    Raises
    ------
    Refusal
        If there is no such experiment.
    """
    recipes = {recipe.name: recipe for recipe in RECIPES}
    for name in names:
        if name.upper() not in recipes:
            raise Refusal(f"there is no experiment {name!r}; there are: {', '.join(recipes)}")
    return tuple(recipes[name] for name in dict.fromkeys(map(str.upper, names))) or RECIPES


def every_picture() -> Iterator[Picture]:
    """Yield every figure of every recipe."""
    for recipe in RECIPES:
        yield from recipe.pictures


def _by_number() -> dict[str, Picture]:
    """Return every figure by each of its numbers."""
    pictures: dict[str, Picture] = {}
    for picture in every_picture():
        pictures |= dict.fromkeys(picture.names, picture)
    return pictures


PICTURES: Mapping[str, Picture] = _by_number()
"""Figures by their numbers; those of the paper's first version are `v1 2` to `v1 10`."""
