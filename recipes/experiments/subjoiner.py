"""E4: heads that gather the pieces of a word."""

import xarray as xr

from recipes.evidence.files import Absent, Files, best_head
from recipes.paper_models import named
from recipes.recipe import SUBJOINER, Check, Claim, Picture, Recipe
from robustness.statistics.uncertainty import interval_of_share


def _best(files: Files) -> xr.Dataset:
    """Return the head with the highest score on the words that select heads."""
    dataset = files[SUBJOINER]
    layer, head = best_head(dataset)
    return dataset.isel(layer=layer, head=head)


def _score(files: Files) -> tuple[float, float, float]:
    best = _best(files)
    return float(best["score"]), float(best["score_low"]), float(best["score_high"])


def _monotone(files: Files) -> tuple[float, float, float]:
    """Return the share of held-out words with falling weights, and its 95 % interval."""
    share, words = float(_best(files)["monotone"]), files[SUBJOINER].attrs["words_in_pieces"] // 2
    return share, *interval_of_share(round(share * words), words)


def _denser_early(files: Files) -> float:
    heads = files[SUBJOINER]["found"].sum("head")
    if not heads.sum():
        raise Absent("no head stands out")
    early = heads["relative_depth"] < 0.5
    return float(heads.where(early, 0).sum() - heads.where(~early, 0).sum())


RECIPE = Recipe(
    name="E4",
    title="Subjoiner heads",
    question="Are there heads in early layers that gather the pieces of a word?",
    sources=(SUBJOINER,),
    cost="2,000 inputs of 16 tokens",
    models=named("pythia-2.8b-deduped"),
    data="988 words in four pieces, 5,000 whole words",
    notes=(
        "Heads are found on half of the words and measured on the other half; the authors showed "
        "ten inputs that were chosen by the very head.",
        "The paper calls its head layer 2, head 5; the tensor it plots is layer 1, head 6 from 0.",
    ),
    pictures=(
        Picture(
            ("6b", "v1 9"),
            "subjoiner",
            "Where the best head looks",
            "Attention of the best head from the last token to each token before, where the last "
            "tokens are pieces of one word and where the last is a whole word; mean over held-out "
            "words, with 95 % bands.",
            (SUBJOINER,),
        ),
    ),
    claims=(
        Claim(
            "C4.1",
            "A head in an early layer attends to the pieces of a word.",
            "section 4.1",
            (
                Check(
                    "weight on the pieces of a word, less the same for whole words, best head",
                    _score,
                    least=0.05,
                ),
                Check(
                    "its relative depth",
                    lambda files: _best(files)["relative_depth"],
                    most=0.5,
                ),
                Check("its layer", lambda files: _best(files)["layer"]),
                Check("its index in the layer", lambda files: _best(files)["head"]),
            ),
        ),
        Claim(
            "C4.2",
            "It looks most at the first piece, and less at each that follows.",
            "figure 6b",
            (
                Check(
                    "share of words with falling weights, best head (chance: one in six)",
                    _monotone,
                    least=0.5,
                ),
            ),
        ),
        Claim(
            "C4.3",
            "Such heads are denser in the first half of the layers.",
            "section 4.1",
            (
                Check(
                    "heads found in the first half of the layers, less those in the second",
                    _denser_early,
                    least=0,
                ),
                Check("heads found", lambda files: files[SUBJOINER]["found"].sum()),
            ),
        ),
    ),
)
