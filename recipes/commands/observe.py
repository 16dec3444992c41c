"""The command that measures what a model's unchanged run shows at every depth."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recipes.commands.dry_run import dry_run_option, rehearsal
from recipes.commands.gathering import Values, gather
from recipes.commands.opening import announce, directory_of, open_model, silence_libraries
from recipes.commands.options import (
    batch_option,
    model_argument,
    model_options,
    run_options,
    text_options,
)
from recipes.commands.parameters import Finite
from recipes.commands.progress import advise, progress, quoted, tell
from recipes.commands.tables import table_options
from recipes.terminal import say
from robustness.errors import InUse, OtherSettings, Refusal, Unwritable

if TYPE_CHECKING:
    from robustness.models.model import Model
    from robustness.models.settings import ModelSettings
    from robustness.runs.settings import RunOptions
    from robustness.text.corpus import Corpus
    from robustness.text.settings import TextSettings

MEASUREMENTS = ("lens", "cka", "attention", "norms", "similarity", "neurons")
"""Names of the measurements; all except neurons share one pass over the text."""

KURTOSIS = 10.0
"""Default of --kurtosis."""


@dataclass(frozen=True)
class NeuronOptions:
    """Options of the measurement of neurons."""

    real_vocabulary: bool
    kurtosis: float


def neuron_options(values: Values) -> NeuronOptions:
    """Return the options of neurons, and refuse them where neurons are not measured."""
    measurements: tuple[str, ...] = values.pop("measurements")
    options = NeuronOptions(**values)
    if measurements and "neurons" not in measurements and options != NeuronOptions(False, KURTOSIS):
        raise click.UsageError("--real-vocabulary and --kurtosis go with neurons")
    return options


@click.command()
@model_argument()
@click.argument(
    "measurements", nargs=-1, type=click.Choice(MEASUREMENTS), metavar="[MEASUREMENT]..."
)
@gather(
    "neurons",
    neuron_options,
    click.option(
        "--real-vocabulary",
        is_flag=True,
        help="For neurons: leave out rows of the unembedding that belong to no token.",
    ),
    click.option(
        "--kurtosis",
        type=Finite(),
        default=KURTOSIS,
        show_default=True,
        help="For neurons: kurtosis above which a neuron predicts or suppresses tokens.",
    ),
    uses=("measurements",),
)
@text_options
@model_options
@run_options("Directory for the files.  [default: outputs/MODEL]", batch_option)
@dry_run_option
@table_options
def observe(
    model: "ModelSettings",
    measurements: tuple[str, ...],
    neurons: NeuronOptions,
    text: "TextSettings",
    run: "RunOptions",
    dry_run: bool,
) -> None:
    """Measure what MODEL's unchanged run shows at every depth, in one pass over the text.

    \b
    lens        entropy, KL, agreement and loss of what each residual stream predicts
    cka         similarity of the residual streams of all pairs of depths
    attention   distance, share on the first token and entropy of each head's attention
    norms       norms of what attention and MLP write, block influence, angular distance
    similarity  what sublayers write when adjacent blocks are swapped
    neurons     how MLP neurons write to the vocabulary, from weights alone

    Without MEASUREMENTs, all that MODEL and the text allow are measured. A measurement that is
    named and cannot be made is an error, after the others are made. Each leaves a file in the
    directory. An interrupted command continues when it is given again.

    \b
    stages observe builtin
    stages observe openai-community/gpt2 lens cka --data my.jsonl --tokens 100000
    stages observe meta-llama/Llama-3.1-70B lens --remote --dry-run
    """
    # A measurement that is named twice is made once.
    names = list(dict.fromkeys(measurements)) or list(MEASUREMENTS)
    observation = _Observation(model, run, alone=len(names) == 1)
    traced = [name for name in names if name != "neurons"]
    if dry_run:
        if not traced:
            raise click.UsageError("neurons are measured from weights alone: leave out --dry-run")
        observation.rehearse(traced, text)
        return
    if traced:
        observation.observe(traced, text)
    if "neurons" in names:
        observation.measure_neurons(neurons)
    observation.check(names, strict=bool(measurements))
    observation.advise()


class _Observation:
    """Measurements of one command: those that are made, and those that are left out."""

    def __init__(self, model: "ModelSettings", run: "RunOptions", *, alone: bool) -> None:
        self.model = model
        self.run = run
        self.alone = alone
        """Whether one measurement was asked for, so that its refusal needs no name."""
        self.directory = None if run.out is None else Path(run.out)
        self.left_out: dict[str, str] = {}
        self.files: list[Path] = []

    def observe(self, names: list[str], text: "TextSettings") -> None:
        """Make the measurements that need the model's activations, in one pass."""
        from robustness.measurements.observation import observe

        opened, corpus, fitting = self._prepare(names, text)
        self.directory = self.directory or directory_of(opened.name)
        if fitting:
            with progress(len(corpus.tokens), "sequence") as show:
                options = replace(self.run, out=self.directory, progress=show)
                observe(opened, corpus, fitting, options)
        for name in fitting:
            self.keep(self.directory / f"{name}.nc")

    def rehearse(self, names: list[str], text: "TextSettings") -> None:
        """Print what the measurements that need the model's activations would take."""
        from robustness.measurements.observation import observe

        opened, corpus, fitting = self._prepare(names, text)
        self.check(names, strict=False)
        with rehearsal() as foresee:
            observe(opened, corpus, fitting, replace(self.run, out=None, foresee=foresee))

    def _prepare(self, names: list[str], text: "TextSettings") -> "tuple[Model, Corpus, list[str]]":
        """Open the model, read the text, and return the measurements that both allow."""
        announce(self.model)
        from robustness.measurements.requirements import unfit
        from robustness.text.corpus import read_text

        opened = open_model(self.model)
        corpus = read_text(text, opened)
        self.leave_out(unfit(opened, corpus, names))
        return opened, corpus, [name for name in names if name not in self.left_out]

    def measure_neurons(self, options: NeuronOptions) -> None:
        """Measure neurons from the checkpoint's weights, without opening the model."""
        here = ", for neurons on this machine" if self.model.remote else ""
        tell(f"reading the weights of {self.model.source}{here}")
        from robustness.measurements.prediction_neurons import NeuronSettings, neurons
        from robustness.models.checkpoint import resolve

        silence_libraries()
        directory = self.directory or directory_of(resolve(self.model.source)[0])
        out = directory / "neurons.nc"
        try:
            with progress(None, "layer") as show:
                neurons(
                    self.model.source,
                    NeuronSettings(options.real_vocabulary, options.kurtosis),
                    replace(self.run, out=out, progress=show),
                    revision=self.model.revision,
                    trust_remote_code=self.model.trust_remote_code,
                )
        # These say nothing about the model, and must not be reported as left out.
        except (InUse, OtherSettings, Unwritable):
            raise
        except Refusal as error:
            self.leave_out({"neurons": str(error)})
        else:
            self.keep(out)

    def keep(self, file: Path) -> None:
        """Print the path of a file that was measured."""
        self.files.append(file)
        say(file)

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Tell which measurements cannot be made, and why."""
        self.left_out.update(reasons)
        for name, reason in reasons.items() if not self.alone else ():
            tell(f"{name} is left out: {reason}")

    def check(self, names: list[str], *, strict: bool) -> None:
        """Refuse if nothing was measured or, if `strict`, if anything was left out."""
        for name, reason in self.left_out.items():
            if self.alone:
                raise Refusal(reason)
            if len(self.left_out) == len(names):
                raise Refusal(f"nothing could be measured; {name}: {reason}")
            if strict:
                raise Refusal(f"{name} was left out, the rest was measured: {reason}")

    def advise(self) -> None:
        """Print the command that may follow."""
        advise(f"plot {quoted(self.files[0])}")
