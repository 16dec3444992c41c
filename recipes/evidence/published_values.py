"""Published values with their sources: a record for each quantity of a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import nan

from recipes.evidence import quantities
from recipes.evidence.files import Files
from recipes.recipe import ATTENTION, LENS, NEURONS, SUBJOINER, SUFFIX, WIC, Source

TOLERANCE_OF_ATTENTION = 0.003
"""Precision with which local attention could be read off the authors' plots."""


@dataclass(frozen=True)
class Published:
    """Values of one quantity for one model."""

    model: str
    """Name of the model on the hub, without its owner."""
    quantity: str
    experiment: str
    unit: str
    """Unit of the published values, which need not be that of the files."""
    where: str
    settings: str
    """Settings of the published measurement."""
    values: Mapping[str, float]
    """Values by layer, depth, or layer.neuron."""
    tolerance: float
    """Precision of the published values; NaN if settings differ too much for a comparison."""
    source: Source
    """File that holds the same quantity as measured here."""
    measured: Callable[[Files], Mapping[str, float]]
    """Function that reads the quantity from a model's files, in the published unit."""

    @property
    def peak(self) -> int:
        """Layer or depth of the largest value."""
        return int(max(self.values, key=lambda place: self.values[place]))


def _by_layer(values: str) -> dict[str, float]:
    """Read values that stand one after the other, a dash where there is none."""
    return {str(at): float(value) for at, value in enumerate(values.split()) if value != "-"}


PROCESSED = "weights folded and centred; kurtosis above 10"

_ATTENTION = {
    "gpt2": "0.0401 0.0463 0.102 0.0825 0.0684 0.0363 0.042 0.0309 0.0328 0.0233 0.0202 0.0203",
    "gpt2-medium": (
        "- 0.0287 0.0858 0.1058 0.0797 0.0602 0.0356 0.0328 0.042 0.0296 0.037 0.0329 "
        "0.0283 0.0371 0.0285 0.0295 0.0261 0.0245 0.0219 0.0151 - - 0.0139 0.0217"
    ),
    "gpt2-large": (
        "- 0.0273 0.0384 0.0519 0.0603 0.0651 0.0623 0.0601 0.0577 0.0602 0.053 0.0441 "
        "0.0412 0.0523 0.0528 0.048 0.0373 0.0347 0.0351 0.0233 0.0254 0.025 0.021 0.0258 "
        "0.0223 0.0193 0.0217 0.0191 0.0145 0.0129 0.0129 0.0148 0.0171 0.017 0.0216 0.0287"
    ),
    "gpt2-xl": (
        "0.0259 0.0332 0.043 0.0501 0.0498 0.0552 0.0609 0.0584 0.0526 0.0524 0.0441 0.0481 "
        "0.0472 0.0434 0.0543 0.0451 0.0375 0.0359 0.0418 0.0359 0.0283 0.0313 0.0354 "
        "0.0278 0.0257 0.0319 0.0283 0.0262 0.0252 0.019 0.0177 0.0181 0.0177 0.0184 0.0184 "
        "0.0124 0.0141 0.0152 0.0129 0.0143 0.0136 0.0134 0.0159 0.0148 0.0184 0.0162 "
        "0.0188 0.0209"
    ),
    "pythia-410m-deduped": (
        "0.0542 - 0.0463 0.0664 0.054 0.0862 0.0297 0.0296 0.0326 0.0313 0.0287 0.0254 "
        "0.029 0.0245 0.0231 0.033 0.0184 0.0186 0.0138 0.0174 0.0181 0.0188 0.0325 0.0518"
    ),
    "pythia-1.4b-deduped": (
        "0.0577 0.075 0.0452 0.0558 0.051 0.0336 0.0462 0.0206 0.0402 0.0394 0.0321 0.0258 "
        "0.0282 0.027 0.0261 0.0222 0.0189 0.0163 0.0197 0.0277 0.0178 0.0198 0.027 0.045"
    ),
    "pythia-2.8b-deduped": (
        "0.0488 0.0812 0.0326 0.0349 0.0397 0.0387 0.0255 0.0245 0.0328 0.0305 0.0349 "
        "0.0277 0.0275 0.025 0.0279 0.0219 0.0233 0.0181 0.0196 0.0152 0.0188 0.0169 0.0178 "
        "0.0171 0.0159 0.0185 0.0126 0.0208 0.0213 0.0174 0.0277 -"
    ),
    "pythia-6.9b-deduped": (
        "0.0432 0.0604 0.0554 0.0631 0.0431 0.0275 0.0315 0.0302 0.0202 0.0229 0.027 0.0263 "
        "0.0258 0.0302 0.0207 0.0216 0.0274 0.0205 0.0233 0.0174 0.0171 0.0156 0.0161 "
        "0.0145 0.0182 0.0152 0.0214 0.026 0.0207 0.021 0.021 0.0165"
    ),
    "phi-1": (
        "0.0657 0.0983 0.0497 0.0379 0.0372 0.023 0.0237 0.021 0.0203 0.0148 0.0172 0.0179 "
        "0.0198 0.0189 0.0172 0.0187 0.0215 0.0139 0.0172 0.0173 0.02 0.022 0.0232 0.0238"
    ),
    "phi-1_5": (
        "0.075 0.0571 0.0348 0.0247 0.0277 0.0216 0.0244 0.0216 0.0238 0.0225 0.0216 0.0269 - "
        "0.0248 0.0203 0.0216 0.0161 0.0189 0.0182 0.0162 0.0166 0.0213 0.0248 0.0259"
    ),
    "phi-2": (
        "0.0743 0.0616 0.0273 0.0159 0.0185 0.0225 0.018 0.0207 0.0162 0.0164 0.023 0.0208 "
        "0.0216 0.0191 0.0225 0.025 0.0218 0.0225 0.0205 0.0211 0.0221 0.0172 0.0142 0.0216 "
        "0.0116 0.0144 0.0126 0.0131 0.0161 0.0274 0.0356 0.0149"
    ),
}
"""By layer; where another curve of the plot covers a value there is a dash."""

PUBLISHED: tuple[Published, ...] = (
    *(
        Published(
            model,
            "local attention",
            "E3",
            "1",
            "authors' notebook attention_prev5, read off the plots",
            "first 100 documents of the Pile; GPT-2 500 tokens, others up to 2,048",
            _by_layer(values),
            TOLERANCE_OF_ATTENTION,
            ATTENTION,
            quantities.local_attention,
        )
        for model, values in _ATTENTION.items()
    ),
    Published(
        "gpt2",
        "entropy of the frozen lens",
        "E7",
        "bit",
        "authors' notebook entropy_calculation, read off the plot",
        "first 10 documents of the Pile, 500 characters of each",
        _by_layer("15.6 15.46 15.42 15.37 15.3 15.24 15.09 14.87 14.46 13.64 11.95 9.23 7.17"),
        0.06,
        LENS,
        partial(quantities.lens_entropy, "frozen"),
    ),
    *(
        Published(
            "gpt2",
            f"{name} neurons",
            "E8",
            "1",
            "authors' notebook neuron_counter, whole numbers read off the plot",
            PROCESSED,
            _by_layer(values),
            1,
            NEURONS,
            partial(quantities.neuron_count, name),
        )
        for name, values in (
            ("prediction", "0 0 0 1 1 2 0 2 14 57 97 52"),
            ("suppression", "0 0 0 0 0 0 0 0 3 7 32 94"),
        )
    ),
    *(
        Published(
            "pythia-160m",
            f"{name} of the cosines",
            "E8",
            "1",
            "wesg52/universal-neurons, interpretable_neurons/pythia-160m/universal.csv",
            "weights folded and centred",
            values,
            tolerance,
            NEURONS,
            partial(quantities.moments, name),
        )
        for name, tolerance, values in (
            (
                "variance",
                2e-06,
                {
                    "11.2314": 0.000882,
                    "10.1214": 0.001013,
                    "10.2213": 0.001738,
                    "9.2898": 0.00084,
                    "0.39": 0.001186,
                    "0.61": 0.001369,
                },
            ),
            (
                "skewness",
                0.02,
                {
                    "11.2314": -4.705102,
                    "10.1214": -4.800581,
                    "10.2213": 4.661659,
                    "9.2898": 2.60937,
                    "0.39": -0.002215,
                    "0.61": 0.020542,
                },
            ),
            (
                "kurtosis",
                0.2,
                {
                    "11.2314": 97.695244,
                    "10.1214": 53.723827,
                    "10.2213": 48.638733,
                    "9.2898": 46.77546,
                    "0.39": 3.213537,
                    "0.61": 2.948178,
                },
            ),
        )
    ),
    Published(
        "arwen-gpt2-medium-x21",
        "neurons of kurtosis above 10",
        "E8",
        "1",
        "wesg52/universal-neurons, notebook prediction_neurons (stanford-gpt2-medium-a)",
        "weights folded and centred; the output lists 1,201 to 1,300",
        {"all": 1250.5},
        49.5,
        NEURONS,
        quantities.neurons_above_kurtosis,
    ),
    Published(
        "gpt2-xl",
        "rank of the neurons for -ing",
        "E9",
        "1",
        "authors' notebook find_neurons, titles of the plots",
        "weights folded and centred; the first 32",
        {
            name: rank + 1.0
            for rank, name in enumerate(
                (
                    "46.4888 47.1678 43.1157 36.267 39.909 36.2973 41.2155 44.2890 "
                    "45.1184 30.3370 46.5578 33.1484 33.143 29.2673 33.5111 39.2211 "
                    "42.1434 45.588 37.3822 44.5139 31.5541 33.5101 36.3273 33.1689 "
                    "33.2540 41.6359 24.3822 41.2219 36.1912 45.5128 31.2843 34.2122 "
                ).split()
            )
        },
        0,
        SUFFIX,
        quantities.suffix_ranks,
    ),
    Published(
        "gpt2-xl",
        "neurons of the 32 that raise -ing",
        "E9",
        "1",
        "authors' notebook find_neurons, signs read off the histograms",
        "weights folded and centred",
        {"all": 23},
        0,
        SUFFIX,
        quantities.neurons_raising_suffix,
    ),
    Published(
        "pythia-2.8b-deduped",
        "subjoiner head",
        "E4",
        "1",
        "authors' notebook subjoiner_heads (the paper calls it layer 2, head 5)",
        "988 words in four pieces; the head was not sought among all",
        {"layer": 1, "head": 6},
        0,
        SUBJOINER,
        quantities.best_subjoiner_head,
    ),
    Published(
        "Llama-2-7b-hf",
        "word in context by a threshold on the cosine",
        "E6",
        "1",
        "RyanLiut/LLM_LexSem, output/test_acc.csv (Liu et al. 2024)",
        "standardised over batches of 30, threshold from dev, test of 1,400 pairs",
        {"0": 0.5279, "12": 0.6357, "32": 0.5936},
        0.026,
        WIC,
        quantities.threshold_accuracy,
    ),
    *(
        Published(
            "gpt2-xl",
            f"entropy of the {lens} lens at the embedding",
            "E7",
            "bit",
            "TransformerLens issue 1076",
            "a report on one prompt and a GPT-2 of 48 layers",
            {"0": value},
            nan,
            LENS,
            partial(quantities.lens_entropy, lens),
        )
        for lens, value in (("frozen", 15.6), ("recomputed", 0.5))
    ),
)
"""All that is known, for checkpoints on the hub."""
