"""Distillation: a model whose blocks were removed is trained towards the one it was made of."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
import xarray as xr
from torch import Tensor

from recipes.training.adapters import check_installed, count, with_adapters
from recipes.training.distillation_card import card
from recipes.training.distillation_log import to_dataset
from recipes.training.distillation_settings import Distillation
from recipes.training.divergence import losses
from recipes.training.loop import Trainee, milder, train
from recipes.training.place import Place
from recipes.training.settings import TrainingOptions
from recipes.training.state import Course
from recipes.training.text import Source, Texts, encode, read, share
from recipes.training.tokenizer import hash_of
from recipes.training.untrained import build_optimizer
from robustness.errors import Refusal
from robustness.files.lock import Lock
from robustness.files.netcdf import load, save
from robustness.models import checkpoint
from robustness.models.hashes import ORIGIN
from robustness.models.model import Model
from robustness.models.opening import open_model
from robustness.models.placement import choose_device
from robustness.reordered.exporting import refuse_code, save_checkpoint
from robustness.runs.settings import Tell

KIND, LOG = "distillation", "distillation.nc"
"""Kind of a directory with a distilled model, as its manifest has it, and file name of its log."""

LOGITS = 2**25
"""Maximum number of logits of a model that are in memory at once, besides those of a sequence."""

HELD_OUT = 128
"""Maximum number of held-out sequences of a source that a model is evaluated on."""

EVALUATED = ("held_out_kl", "held_out_loss")
"""Names of what is measured on held-out text: divergence from the teacher, and loss."""

COMPARED = 100
"""Number of documents on which two tokenizers are compared."""


def distill(  # noqa: PLR0913 - two models, a text, a place, and how
    student: str | Path,
    teacher: str | Path,
    sources: Sequence[str | Path],
    directory: Path,
    settings: Distillation | None = None,
    options: TrainingOptions | None = None,
    *,
    weights: Sequence[float] = (),
    device: str | None = None,
) -> xr.Dataset:
    """Train a changed model towards its original, and write it to another directory.

    An interrupted call resumes from the last checkpoint when it is made again; a finished one does
    nothing.

    Parameters
    ----------
    student : str or path
        Directory of the model to train, which stays as it is.
    teacher : str or path
        Model whose predictions are learned: a built-in one, a directory, or a hub id.
    sources : sequence of str or path
        Corpora, as `robustness.text.sources.documents` takes them.
    directory : path
        Directory for the trained model in the dtype of the student, its tokenizer, the log
        `distillation.nc`, `README.md` and `stages.json`. It must be empty, missing, or hold this
        training.
    settings : Distillation, optional
        Settings of the training.
    options : TrainingOptions, optional
        Interval of checkpoints, and callbacks.
    weights : sequence of float
        Relative frequencies with which sources are drawn; by default all are equal.
    device : str, optional
        Device, as torch names it; by default the first GPU, or the CPU if there is none. On a GPU
        products are computed in bfloat16; weights that are trained stay float32.

    Returns
    -------
    Dataset
        `loss` and `learning_rate` (step); `held_out_loss` and `held_out_kl` (evaluation, source),
        the first before any step.

    Raises
    ------
    Refusal
        If a model or a source cannot be read, the teacher has another tokenizer, the directory
        holds anything else, or the loss diverges.
    """
    settings, options = settings or Distillation(), options or TrainingOptions(checkpoint_every=50)
    if settings.lora is not None:
        check_installed()
    shares = share(weights, len(sources))
    place = Place(directory.expanduser(), KIND)
    if place.directory.resolve() == Path(student).expanduser().resolve():
        raise Refusal(f"{student} is the model to train, and stays as it is: choose another place")
    with Lock(place.checkpoint) as lock:
        earlier = place.claim(alone=lock.held)
        texts = [read(source, seed=settings.seed, held_out=settings.held_out) for source in sources]
        learner, original = _open(student, teacher, choose_device(device))
        _check_pair(learner, original, settings, texts)
        data = encode(texts, shares, settings.context, learner.tokenizer)
        made_of = _describe(settings, data, texts, learner, original)
        if earlier is not None and place.is_finished(earlier, made_of):
            options.tell(f"{place.directory} holds this model already: nothing is trained")
            return load(place.directory / LOG)
        _check_memory(settings, learner)
        _tell_of_another_teacher(learner, original, options.tell)
        trainee = _trainee(settings, data, learner, original)
        log = train(Course(place.checkpoint, KIND, made_of), trainee, data, settings, options)
        dataset = to_dataset(log, data, settings, learner, original)
        net = _as_written(trainee, learner, _dtype(student), settings)
        setattr(net.config, ORIGIN, _origin(net, settings, original, made_of))

        def write(where: Path) -> None:
            save_checkpoint(learner, net, where, state_dict=net.state_dict())
            save(dataset, where / LOG)
            text = card(place.directory.name, dataset, getattr(net.config, ORIGIN))
            (where / "README.md").write_text(text, encoding="utf-8")

        place.finish(write, made_of)
        return dataset


def _open(student: str | Path, teacher: str | Path, device: str) -> tuple[Model, Model]:
    """Open the model to train, in float32, and the one it learns from."""
    path = Path(student).expanduser()
    if not path.is_dir():
        raise Refusal(f"there is no directory {student}: give a checkpoint, such as an export")
    # Where a GPU computes in bfloat16, a teacher in float32 would only take more memory.
    usual = "bfloat16" if torch.device(device).type == "cuda" else "float32"
    learner = open_model(path, dtype="float32", device=device)
    refuse_code(learner, learner.traced._module)
    return learner, open_model(teacher, dtype=usual, device=device)


def _dtype(student: str | Path) -> torch.dtype:
    """Return the dtype in which a checkpoint is written."""
    name, path = checkpoint.resolve(str(Path(student).expanduser()))
    dtype = checkpoint.read_config(name, path, None, False).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _check_pair(
    learner: Model, original: Model, settings: Distillation, texts: Sequence[Source]
) -> None:
    """Refuse a teacher that does not predict the tokens of the student."""
    for model in (learner, original):
        if model.tokenizer is None:
            raise Refusal(f"{model.name} has no tokenizer, which `data` needs: add its files")
        if model.context is not None and model.context < settings.context:
            raise Refusal(
                f"{model.name} takes {model.context} tokens, fewer than {settings.context}: lower "
                "`context`"
            )
    if not isinstance(learner.tokenizer.eos_token_id, int):
        raise Refusal(f"the tokenizer of {learner.name} has no EOS, which ends documents")
    if not _same_tokenizer(learner.tokenizer, original.tokenizer, texts):
        raise Refusal(
            f"{original.name} has another tokenizer than {learner.name}, so that their predictions "
            "cannot be compared: give the `teacher` that the model was made of"
        )
    if learner.vocabulary != original.vocabulary:
        raise Refusal(
            f"{original.name} predicts {original.vocabulary} tokens, and {learner.name} "
            f"{learner.vocabulary}: give the `teacher` that the model was made of"
        )


def _same_tokenizer(one: Any, other: Any, texts: Sequence[Source]) -> bool:
    """Whether two tokenizers have the same tokens, and give some documents the same ones."""
    if hash_of(one) == hash_of(other):
        return True
    # A tokenizer that was read and written again may state the same rules in another way.
    ends = [(each.bos_token_id, each.eos_token_id) for each in (one, other)]
    if ends[0] != ends[1] or one.get_vocab() != other.get_vocab():
        return False
    for source in texts:
        documents = source.train[:COMPARED]
        first, second = (
            each(documents, add_special_tokens=False, verbose=False)["input_ids"]
            for each in (one, other)
        )
        if first != second:
            return False
    return True


def _describe(
    settings: Distillation,
    data: Texts,
    texts: Sequence[Source],
    learner: Model,
    original: Model,
) -> dict[str, str]:
    """Return the settings and hashes that identify a training."""
    made_of = {name: str(value) for name, value in asdict(settings).items()}
    made_of |= {"sources": ", ".join(data.names), "shares": str(data.weights.tolist())}
    for number, text in enumerate(texts, 1):
        made_of[f"sha256 of text {number} ({text.name})"] = text.sha256
    made_of["sha256 of the tokenizer"] = hash_of(learner.tokenizer)
    made_of |= {"model": learner.name, "teacher": original.name, "precision": _precision(learner)}
    for role, model in (("model", learner), ("teacher", original)):
        for fact in ("revision", "weights_sha256", "config_sha256"):
            if model.identity.get(fact):
                made_of[f"{fact} of the {role}"] = model.identity[fact]
    return made_of


def _precision(learner: Model) -> str:
    return "bfloat16" if learner.device.type == "cuda" else "float32"


def _check_memory(settings: Distillation, learner: Model) -> None:
    """Refuse a training that does not fit into this machine's memory, and ranks without use."""
    if settings.lora is None:
        weights = sum(part.numel() for part in learner.traced._module.parameters())
        # In float32: gradients and two moments, besides the weights that are there already.
        needed, what = 12 * weights, "training all weights takes"
        remedy = "train adapters with `lora` 16"
    else:
        # Weights of adapters are not there yet.
        needed = 16 * count(learner, settings.lora)
        what, remedy = f"adapters of rank {settings.lora} take", "lower `lora`"
    free = psutil.virtual_memory().available
    if learner.device.type == "cpu" and needed > free:
        raise Refusal(
            f"{what} {needed / 1e9:,.0f} GB more, and {free / 1e9:,.0f} GB are free: {remedy}"
        )


def _tell_of_another_teacher(learner: Model, original: Model, tell: Tell) -> None:
    """Tell that a student was made of another model than its teacher, as far as it says so."""
    origin = getattr(learner.traced._module.config, ORIGIN, None)
    if not isinstance(origin, dict):
        return
    # A directory that was moved has another name, and a model of the hub has no hash.
    for fact in ("weights_sha256", "model"):
        made_of, teacher = origin.get(fact), original.identity.get(fact)
        if made_of and teacher:
            if made_of != teacher:
                other = " with other weights" if origin.get("model") == original.name else ""
                made_of = f"{origin.get('model')}{other}"
                tell(
                    f"{learner.name} was made of {made_of}, and is trained towards {original.name}"
                )
            return


def _trainee(settings: Distillation, data: Texts, learner: Model, original: Model) -> Trainee:
    """Return the model with its losses."""
    torch.manual_seed(settings.seed)
    net, teacher = learner.traced._module, original.traced._module
    wrapper = net if settings.lora is None else with_adapters(learner, settings.lora)
    rows = max(1, LOGITS // (settings.context * learner.vocabulary))
    bfloat16 = _precision(learner) == "bfloat16"

    def both(tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        tokens = tokens.to(learner.device)
        with torch.autocast(learner.device.type, torch.bfloat16, enabled=bfloat16):
            with torch.no_grad():
                expected = teacher(input_ids=tokens, use_cache=False).logits
            found = net(input_ids=tokens, use_cache=False).logits
        return losses(found, expected, tokens, temperature)

    def learn(tokens: Tensor) -> Tensor:
        # Some sequences at a time, so that the logits of a batch are never all in memory.
        count, total = tokens[:, 1:].numel(), torch.zeros(())
        for part in tokens.split(rows):
            kl, next_token = both(part, settings.temperature)
            loss = (settings.kl_weight * kl + (1 - settings.kl_weight) * next_token) / count
            loss.backward()
            total += loss.detach().cpu()
        return total

    def evaluate() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {name: [] for name in EVALUATED}
        for source in range(len(data.names)):
            windows = data.windows(source, settings.context)[:HELD_OUT]
            sums = torch.zeros(2, dtype=torch.float64)
            with torch.no_grad():
                for part in windows.split(rows):
                    sums += torch.stack(both(part, 1.0)).cpu()
            for name, number in zip(EVALUATED, sums / windows[:, 1:].numel(), strict=True):
                found[name].append(float(number))
        return found

    return Trainee(
        wrapper,
        build_optimizer(wrapper, settings),
        learn,
        evaluate,
        smaller="lower `batch` or `context`, or train adapters with `lora` 16",
        evaluates=EVALUATED,
        begins_evaluated=True,
    )


def _as_written(
    trainee: Trainee, learner: Model, dtype: torch.dtype, settings: Distillation
) -> Any:
    """Return the module with adapters added to its weights, in the dtype of its file."""
    net: Any = learner.traced._module
    if settings.lora is not None:
        net = trainee.model.merge_and_unload()
    net.to(dtype)
    net.config.dtype = dtype
    if not all(bool(weight.isfinite().all()) for weight in net.parameters()):
        raise Refusal(
            f"the model has weights beyond the range of {str(dtype).removeprefix('torch.')}, in "
            f"which it would be written: {milder(settings)}"
        )
    return net


def _origin(
    net: Any, settings: Distillation, original: Model, made_of: dict[str, str]
) -> dict[str, str]:
    """Return what the checkpoint records of its origin: that of the student, and its training."""
    earlier = getattr(net.config, ORIGIN, None)
    origin = dict(earlier) if isinstance(earlier, dict) else {"model": made_of["model"]}
    trained = "all weights" if settings.lora is None else f"adapters of rank {settings.lora}"
    origin |= {"teacher": original.name, "trained": f"{trained}, {settings.steps} steps"}
    for fact in ("revision", "weights_sha256"):
        if original.identity.get(fact):
            origin[f"teacher_{fact}"] = original.identity[fact]
    return origin
