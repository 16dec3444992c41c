"""Numbers that a block makes of a token, beside its input: how much memory a call takes."""

from robustness.models.model import Model

ALIVE = 2
"""How many times the outputs and inputs of a block's matrices are counted: for what activations,
norms and sums keep beside them."""

PATTERNS = 4
"""Number of attention patterns alive at once where attention is written out."""

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Names that configurations have for the number of experts in a mixture."""


def numbers_of_token(model: Model, length: int) -> int:
    """Return about how many numbers a block holds at once for each token of its input.

    A matrix of a million parameters that reads or writes states of a thousand features has a
    thousand numbers on its other side. Their sum over a block's matrices counts every intermediate
    result once. Of a mixture of experts, a token meets some alone.

    Parameters
    ----------
    model : Model
        An opened model.
    length : int
        Number of tokens in a sequence, which an attention pattern or a mask has for every token.
    """
    other_sides = max(model.block_parameters) / model.width
    config = model.config
    count = next((getattr(config, name) for name in EXPERTS if hasattr(config, name)), None)
    met = getattr(config, "num_experts_per_tok", None)
    if count and met:
        other_sides *= met / count
    numbers = ALIVE * other_sides + length
    # State-space models have no heads.
    if model.identity["attention"] == "eager" and model.attentions:
        numbers += PATTERNS * model.heads * length
    return int(numbers)
