"""Kinds of files that probes write."""

import math

from robustness.files.ranges import ATTENTION_WEIGHT, SHARE
from robustness.files.schema import (
    LAYERS,
    NAME,
    TEXT,
    YES_OR_NO,
    Kind,
    Variable,
    number_labels,
    text_labels,
    whole_from,
)


def _bounded(name: str, *dims: str) -> dict[str, Variable]:
    ends = ("", "_low", "_high")
    return {f"{name}{end}": Variable(dims, "f", *SHARE) for end in ends}


def _probes(prefix: str, *dims: str) -> dict[str, Variable]:
    """Return what probes leave, each by itself or by what it is of."""
    return {
        f"{prefix}correct": Variable((*dims, "item"), "i", -1, 1),
        **_bounded(f"{prefix}accuracy", *dims),
        f"{prefix}dev_accuracy": Variable(dims, "f", *SHARE),
        f"{prefix}chosen": Variable(dims),
    }


PROBES = {
    "wic": Kind(
        {
            **_probes("", "probe", "depth"),
            "state": Variable(("depth", "feature", "sentence")),
        },
        {
            **text_labels("probe"),
            **number_labels(0, "depth", "item"),
            **number_labels(0, "feature", "sentence", ascending=False),
            "word": Variable(("item",), "U"),
            "same": Variable(("item",), "i", 0, 1),
        },
        needed=("correct", "accuracy", "accuracy_low", "accuracy_high"),
        attrs=dict.fromkeys(("train_pairs", "dev_pairs", "test_pairs", "states_dtype"), TEXT),
    ),
    "suffix": Kind(
        {
            **_probes("", "kind", "size"),
            **_probes("single_", "neuron"),
            **_probes("model_", "reading"),
            "shift": Variable(("neuron",)),
            "effect": Variable(("neuron", "tokens", "bin"), "f", 0),
            "activation": Variable(("neuron", "window")),
            "control": Variable(("neuron", "window")),
            "top": Variable(("window",), "f", 0, 1),
            "share": Variable(("window",), "f", *SHARE),
        },
        {
            **text_labels("kind", "tokens", "reading"),
            **number_labels(1, "size"),
            **number_labels(0, "item", "window"),
            **number_labels(0, "neuron", ascending=False),
            "layer": Variable(("neuron",), "i", 0),
            "index": Variable(("neuron",), "i", 0),
            "bin": Variable(("bin",)),
            "label": Variable(("item",), "i", 0, 1),
            "document": Variable(("item",), "i", 0),
        },
        needed=("correct", "accuracy", "single_accuracy", "model_accuracy", "shift"),
        attrs={
            "suffix": NAME,
            "gated": YES_OR_NO,
            "window": whole_from(1),
            "positives": whole_from(0),
        },
        needed_attrs=("suffix",),
    ),
    "subjoiner": Kind(
        {
            "attention": Variable(("input_class", "layer", "head", "key"), "f", *ATTENTION_WEIGHT),
            "attention_standard_error": Variable(("input_class", "layer", "head", "key"), "f", 0),
            **{
                name: Variable(("layer", "head"), "f", -1.05, 1.05)
                for name in ("score", "score_low", "score_high", "finding_score")
            },
            "found": Variable(("layer", "head"), "i", 0, 1),
            "threshold": Variable((), "f"),
            "monotone": Variable(("layer", "head"), "f", *SHARE),
            "weight": Variable(("layer", "head", "key", "input"), "f", *ATTENTION_WEIGHT),
        },
        {
            **LAYERS,
            **number_labels(0, "head"),
            **number_labels(0, "input", ascending=False),
            **number_labels(-math.inf, "key"),
            **text_labels("input_class"),
        },
        needed=("attention", "score", "score_low", "score_high", "finding_score", "found"),
        attrs={
            "pieces": whole_from(1),
            "window": whole_from(1),
            "words_in_pieces": whole_from(0),
            "whole_words": whole_from(0),
        },
        needed_attrs=("words_in_pieces", "whole_words"),
    ),
}
