"""Output matrices: those through which the attention and the MLP of a block write to the stream."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from robustness.errors import Refusal
from robustness.models import call_record
from robustness.models.block_structure import examine
from robustness.models.matrices import names_in_sublayer
from robustness.models.model import Model


def attention_matrices(module: PreTrainedModel, attentions: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of every attention's matrices, in the order in which they are called."""
    tokens = [token % module.config.get_text_config().vocab_size for token in range(2)]
    began = {call.path: call.began for call in call_record.record(module, tokens)}
    ordered = {}
    for path in attentions:
        names = names_in_sublayer(module.get_submodule(path))
        # Not the order of their names: Phi-3 lists the matrix that writes first.
        begins = {name: began.get(f"{path}.{name}", -1) for name in names}
        ordered[path] = sorted(names, key=begins.__getitem__)
    return ordered


def output_matrices(model: Model) -> tuple[tuple[str, str], ...]:
    """Return the paths of the output matrices of attention and MLP of every block.

    Raises
    ------
    Refusal
        If the blocks are not the sum of an attention and an MLP, or these are not made of matrices.
    """
    missing = examine(model).missing
    for need in ("attention", "mlp", "neurons"):
        if need in missing:
            raise Refusal(f"nothing is folded into output matrices: {missing[need]}")
    with model.computing():
        found = attention_matrices(model.traced._module, model.paths.attentions)
    pairs = []
    for (_, writer), (path, names) in zip(enumerate(model.paths.writers), found.items()):
        pairs.append((f"{path}.{names[-1]}", writer))
    return tuple(pairs)
