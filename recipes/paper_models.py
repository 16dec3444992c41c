"""Checkpoints of the paper, and those that come with the project."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Checkpoint:
    """A pretrained model and its architecture."""

    name: str
    """Name that `open_model` accepts."""
    family: str
    """Architecture family."""
    layers: int
    """Number of blocks."""
    blocks: str
    """Kind of block: `sequential`, or `parallel` (attention and MLP read the same stream)."""


BUILTIN = (
    Checkpoint("builtin", "GPT-2", 12, "sequential"),
    Checkpoint("builtin-parallel", "GPT-NeoX", 12, "parallel"),
)
"""Checkpoints shipped with the project; they need no network."""

PAPER = (
    Checkpoint("EleutherAI/pythia-410m-deduped", "GPT-NeoX", 24, "parallel"),
    Checkpoint("EleutherAI/pythia-1.4b-deduped", "GPT-NeoX", 24, "parallel"),
    Checkpoint("EleutherAI/pythia-2.8b-deduped", "GPT-NeoX", 32, "parallel"),
    Checkpoint("EleutherAI/pythia-6.9b-deduped", "GPT-NeoX", 32, "parallel"),
    Checkpoint("openai-community/gpt2", "GPT-2", 12, "sequential"),
    Checkpoint("openai-community/gpt2-medium", "GPT-2", 24, "sequential"),
    Checkpoint("openai-community/gpt2-large", "GPT-2", 36, "sequential"),
    Checkpoint("openai-community/gpt2-xl", "GPT-2", 48, "sequential"),
    Checkpoint("microsoft/phi-1", "Phi", 24, "parallel"),
    Checkpoint("microsoft/phi-1_5", "Phi", 24, "parallel"),
    Checkpoint("microsoft/phi-2", "Phi", 32, "parallel"),
    Checkpoint("Qwen/Qwen2.5-0.5B", "Qwen2", 24, "sequential"),
    Checkpoint("Qwen/Qwen2.5-1.5B", "Qwen2", 28, "sequential"),
    Checkpoint("Qwen/Qwen2.5-3B", "Qwen2", 36, "sequential"),
    Checkpoint("meta-llama/Llama-3.2-1B", "Llama", 16, "sequential"),
    Checkpoint("meta-llama/Llama-3.2-3B", "Llama", 28, "sequential"),
)
"""The sixteen checkpoints of the paper (its Table 3)."""


def of(*families: str) -> tuple[Checkpoint, ...]:
    """Return the paper's checkpoints of some architecture families."""
    return tuple(model for model in PAPER if model.family in families)


FIRST = of("GPT-NeoX", "GPT-2", "Phi")
"""The eleven checkpoints of the paper's first version."""


def named(*names: str) -> tuple[Checkpoint, ...]:
    """Return the paper's checkpoints with some names, without their owners."""
    return tuple(model for model in PAPER if model.name.rpartition("/")[2] in names)
