"""Kinds of files that are made from other files: stages, claims, comparisons."""

from robustness.files.schema import (
    LAYERS,
    OBJECT_OF_TEXTS,
    TEXT,
    Kind,
    Variable,
    number_labels,
    text_labels,
    whole_from,
)

EVIDENCE = {
    "stages": Kind(
        {
            "signature": Variable(("signature_name", "layer")),
            "value": Variable(("signature_name", "layer")),
            "stage": Variable(("partition", "layer"), "i", 0),
            **{
                f"boundary{end}": Variable(("partition", "edge"), "f", 0)
                for end in ("", "_low", "_high")
            },
            "mean": Variable(("partition", "segment", "signature_name")),
            "cost": Variable(("segments",), "f"),
            "criterion": Variable(("segments",), "f"),
        },
        {
            **LAYERS,
            **text_labels("signature_name", "partition"),
            "signature_long_name": Variable(("signature_name",), "U"),
            **number_labels(0, "segment"),
            **number_labels(1, "edge", "segments"),
        },
        needed=("signature", "stage", "boundary", "boundary_low", "boundary_high", "mean"),
        may_be_empty=("edge",),
        attrs={
            "criterion_segments": whole_from(1),
            "draws": whole_from(1),
            **dict.fromkeys(("signatures", "sources"), TEXT),
        },
        needed_attrs=("criterion_segments", "sources"),
    ),
    "claims": Kind(
        {
            **dict.fromkeys(("verdict", "reason"), Variable(("claim",), "U")),
            **dict.fromkeys(("value", "low", "high", "least", "most"), Variable(("check",))),
            "check_verdict": Variable(("check",), "U"),
        },
        {
            **dict.fromkeys(("claim", "experiment", "text", "where"), Variable(("claim",), "U")),
            **dict.fromkeys(("check_claim", "check_text", "check_unit"), Variable(("check",), "U")),
        },
        needed=("verdict", "reason", "value", "low", "high", "least", "most"),
        needed_labels=("text",),
        may_be_empty=("check",),
        attrs={"left_out": OBJECT_OF_TEXTS, "sources": TEXT, "asked": TEXT},
    ),
    "compare": Kind(
        {
            **dict.fromkeys(("value", "low", "high"), Variable(("quantity", "model"))),
            **dict.fromkeys(("verdict", "numbers"), Variable(("claim", "model"), "U")),
            "verdict_across": Variable(("claim_across",), "U"),
        },
        {
            **text_labels("quantity", "model", "claim", "claim_across"),
            "layers": Variable(("model",), "i", 1),
            **dict.fromkeys(("corpus", "context", "tokens", "dtype"), Variable(("model",), "U")),
            "claim_text": Variable(("claim",), "U"),
        },
        needed=("value", "low", "high", "verdict", "verdict_across"),
        needed_labels=("layers", "corpus", "context", "tokens", "dtype"),
        may_be_empty=("claim_across",),
        attrs={"sources": TEXT},
    ),
}
