"""Kinds of files that `observe` and `neurons` write."""

from robustness.files.metrics import KL_REVERSE, LEAST_INFORMATION, READOUTS
from robustness.files.ranges import ATTENTION_WEIGHT, ROUNDING, SHARE
from robustness.files.schema import (
    LAYERS,
    NUMBER,
    SEQUENCES,
    TEXT,
    YES_OR_NO,
    Kind,
    Variable,
    number_labels,
    text_labels,
)

LENS_DIMS = ("lens", "depth", "sequence")
HEAD_DIMS = ("layer", "head", "sequence")
NORM_DIMS = ("processing", "statistic", "sequence")

MEASUREMENTS = {
    "lens": Kind(
        {
            metric.name: Variable(LENS_DIMS, "f", metric.least, metric.most)
            for metric in (*READOUTS, KL_REVERSE)
        },
        {**text_labels("lens"), **number_labels(0, "depth"), **SEQUENCES},
        needed_attrs=("context",),
    ),
    "cka": Kind(
        {
            "hsic": Variable(("processing", "depth", "depth_to", "batch")),
            "cka": Variable(("processing", "depth", "depth_to")),
            "cka_standard_error": Variable(("processing", "depth", "depth_to"), "f", 0),
        },
        {**text_labels("processing"), **number_labels(0, "depth", "depth_to", "batch")},
        needed=("hsic", "cka"),
        needed_attrs=("context", "batch_sequences"),
    ),
    "attention": Kind(
        {
            "profile": Variable(("layer", "head", "offset", "sequence"), "f", *ATTENTION_WEIGHT),
            "first_token": Variable(HEAD_DIMS, "f", *ATTENTION_WEIGHT),
            "entropy": Variable(HEAD_DIMS, "f", LEAST_INFORMATION),
            "previous": Variable(("window", *HEAD_DIMS), "f", *ATTENTION_WEIGHT),
        },
        {**LAYERS, **number_labels(0, "head", "offset"), **number_labels(1, "window"), **SEQUENCES},
        needed=("profile",),
        needed_attrs=("context",),
    ),
    "norms": Kind(
        {
            "residual_norm": Variable(("depth", *NORM_DIMS), "f", 0),
            **{
                name: Variable(("layer", *NORM_DIMS), "f", 0)
                for name in (
                    "attention_norm",
                    "mlp_norm",
                    "attention_mlp_ratio",
                    "middle_norm",
                    "mlp_middle_ratio",
                )
            },
            "block_influence": Variable(("layer", "sequence"), "f", -ROUNDING, 2 + ROUNDING),
            "angular_distance": Variable(("layer", "span", "sequence"), "f", *SHARE),
        },
        {
            **LAYERS,
            **text_labels("processing", "statistic"),
            **number_labels(0, "depth"),
            **number_labels(1, "span"),
            **SEQUENCES,
        },
        needed_attrs=("context",),
    ),
    "similarity": Kind(
        {
            "cosine": Variable(
                ("comparison", "component", "processing", "layer", "sequence"), "f", -1.05, 1.05
            )
        },
        {**LAYERS, **text_labels("comparison", "component", "processing"), **SEQUENCES},
        needed=("cosine",),
        needed_attrs=("context",),
    ),
    "neurons": Kind(
        {
            "cosine_mean": Variable(("layer", "neuron"), "f", -1 - ROUNDING, 1 + ROUNDING),
            "cosine_variance": Variable(("layer", "neuron"), "f", -ROUNDING),
            "cosine_skewness": Variable(("layer", "neuron")),
            "cosine_kurtosis": Variable(("layer", "neuron")),
            "share": Variable(("neuron_class", "layer"), "f", *SHARE),
        },
        {**LAYERS, **number_labels(0, "neuron", ascending=False), **text_labels("neuron_class")},
        needed=("share",),
        attrs={
            "gated": YES_OR_NO,
            "kurtosis_threshold": NUMBER,
            "variance_threshold": NUMBER,
            "vocabulary": TEXT,
        },
    ),
}
