"""Folding of norms and centring of weights, which leave a model's predictions as they are.

Matrices are (out, in), as `torch.nn.Linear` keeps them. Which step is valid depends on the norm.
Layer norm subtracts the mean over features itself, so centring what is written to it or read from
it changes nothing. A root-mean-square norm does not, and centring would change the model. (Elhage
et al. 2021; the defaults of TransformerLens; appendix A.11 of the paper.)
"""

import copy
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from transformers import PreTrainedModel

from robustness.errors import Refusal
from robustness.models.block_structure import examine
from robustness.models.matrices import oriented
from robustness.models.model import Model
from robustness.models.norms import affine
from robustness.models.output_matrices import attention_matrices
from robustness.models.structure import Paths
from robustness.trace.block_calls import HIDDEN


def fold_norm(
    weight: Tensor, bias: Tensor | None, gain: Tensor, shift: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Move a norm's gain and shift, both (in,), into the matrix that reads it.

    Returns
    -------
    weight : tensor of shape (out, in)
    bias : tensor of shape (out,), or None without bias and shift
    """
    if shift is not None:
        added = weight @ shift
        bias = added if bias is None else bias + added
    return weight * gain, bias


def centre_reading(weight: Tensor) -> Tensor:
    """Centre a matrix (out, in) that reads a layer norm: subtract its mean over inputs."""
    return weight - weight.mean(1, keepdim=True)


def centre_writing(weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Centre what writes to a stream that layer norms read: subtract the mean over outputs."""
    return weight - weight.mean(0), None if bias is None else bias - bias.mean()


def centre_unembedding(weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Centre the head: subtract the mean over the vocabulary, the same number from all logits."""
    return weight - weight.mean(0), None if bias is None else bias - bias.mean()


def process(
    model: Model,
    *,
    fold: bool = True,
    centre_writes: bool | None = None,
    centre_head: bool = True,
) -> Module:
    """Return a processed copy of a model; it predicts the same under every schedule.

    Parameters
    ----------
    model : Model
        An opened model, with its weights on this machine.
    fold : bool
        Whether gains and shifts of norms are moved into the matrices that read them. Matrices that
        read a layer norm are centred, too.
    centre_writes : bool, optional
        Whether everything that writes to the residual stream is centred; by default, if the norms
        are layer norms.
    centre_head : bool
        Whether the unembedding is centred.

    Raises
    ------
    Refusal
        If writes are to be centred in a model whose norms do not centre, or that norms its
        embeddings, or its parts do not follow the pattern of norm, matrices that read, one that
        writes.
    """
    if model.request:
        raise Refusal(f"the weights of {model.name} are on a server: open it on this machine")
    if model.offloaded:
        raise Refusal(f"weights of {model.name} are offloaded: open it without a device map")
    structure = examine(model)
    for need in ("attention", "neurons", "prediction"):
        if need in structure.missing:
            raise Refusal(f"weights cannot be processed: {structure.missing[need]}")
    if centre_writes and not structure.centres:
        raise Refusal(
            f"{model.name} has root-mean-square norms: centring what is written to the residual "
            "stream would change what it predicts"
        )
    centred = structure.centres if centre_writes is None else centre_writes
    # Copied under the lock: a trace of another thread replaces the modules' forward methods.
    with model.computing():
        module = copy.deepcopy(model.traced._module)
        _untie(module)
        if fold:
            _check_foldable(module, model.paths)
        attentions = model.paths.attentions if fold or centred else ()
        matrices = attention_matrices(module, attentions)
        if fold:
            _fold(module, model.paths, matrices, centre=structure.centres)
        if centred:
            _centre_writes(module, model.paths, matrices)
        if centre_head:
            head = module.get_output_embeddings()
            _set(head, *centre_unembedding(head.weight, head.bias))
        _check_predictions(model, module)
        if centred:
            _check_centred(model, module)
    return module


def _check_predictions(model: Model, module: PreTrainedModel) -> None:
    """Refuse a processed copy that does not predict the same."""
    tokens = _tokens(model)
    before, after = _predict(model.traced._module, tokens), _predict(module, tokens)
    # Folded weights are rounded once more, in their own type.
    difference, scale = float((before - after).abs().max()), float(before.abs().max())
    if not difference <= 256 * _digit(module) * max(1.0, scale):
        raise Refusal(
            f"the weights of {model.title} cannot be processed: log-probabilities would change by "
            f"{difference:.2g}"
        )


def _predict(module: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the log-probabilities of a model on a text."""
    # Compared as probabilities, since centring the head changes logits on purpose.
    logits: Tensor = module(input_ids=tokens, use_cache=False).logits
    return logits.float().log_softmax(-1)


def _check_centred(model: Model, module: PreTrainedModel) -> None:
    """Refuse a model whose residual stream is not centred where it enters a block."""
    means = []

    def note(_: Module, args: Any, kwargs: dict[str, Any]) -> None:
        state = (args[0] if args else kwargs[HIDDEN]).double()
        means.append(float(state.mean(-1).norm() / state.norm()) * state.shape[-1] ** 0.5)

    with ExitStack() as hooks:
        for path in model.paths.blocks:
            block = module.get_submodule(path)
            handle = block.register_forward_pre_hook(note, with_kwargs=True)
            hooks.callback(handle.remove)
        module(input_ids=_tokens(model), use_cache=False)
    for layer, mean in enumerate(means):
        if not mean <= 256 * _digit(module):
            raise Refusal(
                f"what enters block {layer} of {model.title} cannot be centred in its weights (its "
                f"mean is {mean:.2g} of its size): something else than matrices and embeddings "
                "writes it, such as a norm of the embeddings; ask for `centre_writes` False"
            )


def _tokens(model: Model) -> Tensor:
    """Return a short text, (1, token)."""
    tokens = torch.arange(min(7, model.context or 7), device=model.device)
    return tokens[None] % model.vocabulary


def _digit(module: PreTrainedModel) -> float:
    """Return the rounding error in the type of the weights, or in float32 if that is coarser."""
    return max(torch.finfo(module.dtype).eps, torch.finfo(torch.float32).eps)


def _untie(module: PreTrainedModel) -> None:
    # The final norm is folded into the head, and the embeddings must not change with it.
    module.config.tie_word_embeddings = False
    head = module.get_output_embeddings()
    head.weight = Parameter(head.weight.clone())


def _fold(
    module: PreTrainedModel, paths: Paths, matrices: dict[str, list[str]], *, centre: bool
) -> None:
    """Move every norm's gain and shift into the matrices that read it."""
    width = module.config.get_text_config().hidden_size
    for path, reading in _readers(module, paths, matrices).items():
        norm = module.get_submodule(path)
        gain, shift, _ = affine(norm, width)
        for part in reading:
            weight, bias = fold_norm(
                oriented(part, part.weight), part.bias, gain, shift if shift.any() else None
            )
            _set(part, centre_reading(weight) if centre else weight, bias)
        _make_identity(norm, width)


def _check_foldable(module: PreTrainedModel, paths: Paths) -> None:
    """Refuse norms that cannot be folded.

    Each sublayer must read the stream through one norm and have none behind it, and there may be at
    most one norm before the head.
    """
    foldable = len(paths.norms) <= 1
    for pair in paths.sublayers:
        for before, _, after, _ in pair:
            foldable = foldable and len(before) == 1 and not after
    if not foldable:
        raise Refusal(
            f"{type(module).__name__}: its sublayers do not each read the residual stream through "
            "one norm and write to it as they are"
        )


def _readers(
    module: PreTrainedModel, paths: Paths, matrices: dict[str, list[str]]
) -> dict[str, list[Any]]:
    """Return the matrices that read each norm, by the path of the norm."""
    readers: dict[str, list[Any]] = {}
    for (attention, mlp), mlp_readers in zip(paths.sublayers, paths.readers, strict=True):
        (attention_norm, *_), attention_path, *_ = attention
        (mlp_norm, *_), *_ = mlp
        names = [f"{attention_path}.{name}" for name in matrices[attention_path][:-1]]
        readers.setdefault(attention_norm, []).extend(map(module.get_submodule, names))
        readers.setdefault(mlp_norm, []).extend(map(module.get_submodule, mlp_readers))
    for path in paths.norms:
        readers[path] = [module.get_output_embeddings()]
    return readers


def _make_identity(norm: Any, width: int) -> None:
    """Give a norm gain 1 and shift 0; some families store the gain, others the gain less 1."""
    if getattr(norm, "bias", None) is not None:
        norm.bias.zero_()
    # Both are tried, since the names of weights do not say which of them a family stores.
    for value in (1.0, 0.0):
        if getattr(norm, "weight", None) is not None:
            norm.weight.fill_(value)
        gain, shift, _ = affine(norm, width)
        if torch.allclose(gain, torch.ones_like(gain), atol=1e-3) and not shift.any():
            return
    raise Refusal(f"{type(norm).__name__} cannot be folded into the matrices that read it")


def _centre_writes(module: PreTrainedModel, paths: Paths, matrices: dict[str, list[str]]) -> None:
    """Centre everything that attentions, MLPs and embeddings write to the residual stream."""
    writers = [f"{path}.{names[-1]}" for path, names in matrices.items()]
    for path in (*writers, *paths.writers):
        part = module.get_submodule(path)
        _set(part, *centre_writing(oriented(part, part.weight), part.bias))
    # Every table beside the blocks: positions are added to the stream as tokens are.
    owner = module.get_submodule(paths.block_list.rpartition(".")[0])
    for child in owner.children():
        if isinstance(child, torch.nn.Embedding):
            child.weight.sub_(child.weight.mean(1, keepdim=True))


def _set(part: Any, weight: Tensor, bias: Tensor | None) -> None:
    part.weight.copy_(oriented(part, weight))
    if bias is None:
        return
    if part.bias is None:
        part.bias = Parameter(bias.clone())
    else:
        part.bias.copy_(bias)
