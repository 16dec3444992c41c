"""Settings of a model: which one is opened, in which numbers, and where it runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from robustness.errors import Refusal
from robustness.ndif.limits import ANSWER_LIMIT, SANDBOX_LIMIT

DTYPES = ("float32", "float64", "bfloat16", "float16", "auto")
"""What weights can be loaded as; `auto` is what the checkpoint holds."""

ATTENTION = ("sdpa", "eager")
"""Implementations of attention; every family has the second."""

DEVICE_MAPS = ("auto", "balanced", "sequential", "cpu", "disk")
"""Where weights can be: on GPUs first, then in memory, then on the disk, as accelerate has it;
or all in one place, computed with on the CPU."""


@dataclass(frozen=True)
class ModelSettings:
    """All that decides which model is opened, and how.

    Raises
    ------
    Refusal
        If a setting is none of its choices, or two settings exclude each other.
    """

    source: str | Path
    """A built-in model (`builtin`, `builtin-parallel`), a local directory in Hugging Face format,
    or an id on the Hugging Face hub."""
    dtype: str = "float32"
    """One of `DTYPES`."""
    device: str | None = None
    """A device as torch names it; without one the first GPU, or the CPU where there is none."""
    device_map: str | Mapping[str, int | str] | None = None
    """One of `DEVICE_MAPS`, or the device, `cpu` or `disk` of each submodule, as accelerate takes
    it: weights that do not fit where they are computed with are loaded there block by block."""
    offload: str | Path | None = None
    """A directory for weights that are kept on the disk in another form than the checkpoint's."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    attention: str | None = None
    """One of `ATTENTION`; without it `sdpa`, or `eager` where the family has no other."""
    trust_remote_code: bool = False
    """Whether code that comes with a checkpoint may be run."""
    remote: bool = False
    """Whether the model runs on an NDIF server, which has chosen dtype, device and attention."""
    host: str | None = None
    """The server's address; without it `NDIF_HOST`, or nnsight's configuration."""
    deploy: bool = False
    """Whether the server may be asked to load the model."""
    sandbox_limit: float = SANDBOX_LIMIT
    """Gigabytes that a run may pass through the socket of a server that keeps traces apart from
    the weights."""
    answer_limit: float = ANSWER_LIMIT
    """Gigabytes that a trace of the user's own may hand back from a server. A measurement's answer
    has a known size, and a larger one is refused whatever this limit is."""

    def __post_init__(self) -> None:
        """Refuse settings that do not go together."""
        if self.remote:
            self._check_remote()
        else:
            self._check_local()
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("attention", self.attention, ATTENTION)
        if isinstance(self.device_map, str):
            _check_choice("device map", self.device_map, DEVICE_MAPS)
        if self.device_map is not None and self.device is not None:
            raise Refusal("a device map says where weights are: leave out `device`")
        if self.offload is not None and self.device_map is None:
            raise Refusal("`offload` goes with `device_map`")

    def _check_remote(self) -> None:
        """Refuse what a server decides."""
        chosen = {
            "dtype": self.dtype != "float32",
            "device": self.device,
            "device_map": self.device_map,
            "attention": self.attention,
        }
        wrong = [name for name, given in chosen.items() if given]
        if wrong:
            settings = " and ".join(f"`{name}`" for name in wrong)
            raise Refusal(f"a server has chosen how its models are loaded: leave out {settings}")

    def _check_local(self) -> None:
        """Refuse what only a server understands."""
        if self.host or self.deploy or self.sandbox_limit != SANDBOX_LIMIT:
            raise Refusal("`host`, `deploy` and `sandbox_limit` go with `remote`")


def _check_choice(name: str, chosen: str | None, choices: tuple[str, ...]) -> None:
    if chosen is not None and chosen not in choices:
        raise Refusal(f"no {name} {chosen!r}; there are: {', '.join(choices)}")
