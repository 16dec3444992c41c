"""Records of the metrics in files: name, unit and description of each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """Description of a variable of a file."""

    name: str
    unit: str
    """`nat`, or `1` for a share or a count."""
    long_name: str
    count: bool = False
    """Whether the variable is a whole number."""

    @property
    def attrs(self) -> dict[str, str]:
        """Attributes of the variable in a file."""
        return {"units": self.unit, "long_name": self.long_name}


READOUTS = (
    Metric("kl", "nat", "KL divergence of the intervened from the clean prediction"),
    Metric("agreement", "1", "share of tokens whose top-1 prediction is the clean model's"),
    Metric("loss", "nat", "cross-entropy of the next token"),
    Metric("entropy", "nat", "entropy of the prediction"),
    Metric("accuracy", "1", "share of tokens whose top-1 prediction is the next token"),
)
"""Readouts of every schedule: means over the tokens of a sequence."""

CLEAN_READOUTS = (
    Metric("clean_loss", "nat", "cross-entropy of the next token, clean model"),
    Metric("clean_entropy", "nat", "entropy of the prediction, clean model"),
    Metric("clean_accuracy", "1", "share of tokens predicted top-1, clean model"),
)
"""Readouts of the clean model."""

NONFINITE = Metric("nonfinite", "1", "number of tokens with NaN or infinite logits", count=True)
MODAL_SHARE = Metric("modal_share", "1", "share of tokens with the most frequent top-1 prediction")

METRICS = {metric.name: metric for metric in (*READOUTS, *CLEAN_READOUTS, NONFINITE, MODAL_SHARE)}
"""Every metric by name."""
