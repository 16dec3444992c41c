"""Settings of a model: which model is opened, in which type of numbers, and where it runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from robustness.errors import Refusal
from robustness.ndif.limits import ANSWER_LIMIT, PATIENCE, SANDBOX_LIMIT

DTYPES = ("float32", "float64", "bfloat16", "float16", "auto")
"""Types that weights can be loaded as; `auto` is the type of the checkpoint."""

ATTENTION = ("sdpa", "eager")
"""Implementations of attention; every family has `eager`."""

DEVICE_MAPS = ("auto", "balanced", "sequential", "cpu", "disk")
"""Ways to place weights. The first three are accelerate's: on GPUs as far as they fit, then in
memory, then on the disk. With the last two all weights are in one place, and the CPU computes."""


@dataclass(frozen=True)
class ModelSettings:
    """Settings that decide which model is opened, and how.

    Raises
    ------
    Refusal
        If a setting is none of its choices, or two settings exclude each other.
    """

    source: str | Path
    """A built-in model (`builtin`, `builtin-parallel`), a local directory in Hugging Face format,
    or an id on the Hugging Face hub."""
    dtype: str | None = None
    """One of `DTYPES`; by default `auto` where a GPU computes, and float32 on the CPU."""
    device: str | None = None
    """Device, as torch names it; by default the first GPU, or the CPU if there is none."""
    device_map: str | Mapping[str, int | str] | None = None
    """One of `DEVICE_MAPS`, or the device, `cpu` or `disk` of each submodule, as accelerate takes
    it. Weights that do not fit on the device that computes are loaded there block by block."""
    offload: str | Path | None = None
    """Directory for weights that are kept on the disk in another form than the checkpoint's."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    attention: str | None = None
    """One of `ATTENTION`; by default `sdpa`, or `eager` if the family has no other."""
    compile: bool = False
    """Whether schedules run blocks that torch has compiled, which is faster and takes up to a
    minute to begin with. Numbers differ by rounding."""
    maps: str | Path | None = None
    """File of fitted maps for schedules that name some, such as `0..3-~4..7-8..`."""
    trust_remote_code: bool = False
    """Whether code that comes with a checkpoint may be run."""
    remote: bool = False
    """Whether the model runs on an NDIF server, which decides on dtype, device and attention."""
    host: str | None = None
    """Address of the server; by default `NDIF_HOST`, or nnsight's configuration."""
    deploy: bool = False
    """Whether the server may be asked to load the model."""
    sandbox_limit: float = SANDBOX_LIMIT
    """Maximum number of gigabytes that a run passes through the socket of a server that keeps
    traces apart from the weights."""
    answer_limit: float = ANSWER_LIMIT
    """Maximum number of gigabytes that the user's own traces return from a server. A measurement's
    answer has a known size, and a larger one is refused whatever this limit is."""
    patience: float = PATIENCE
    """Maximum number of minutes for which a server that does not answer is asked again."""
    request_seconds: float | None = None
    """Seconds that a request to a server should take at most; by default what suits the server."""
    request_gb: float | None = None
    """Gigabytes that a request should take at most on a GPU of the server, besides the weights; by
    default what suits the server."""

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
        for name in ("patience", "request_seconds", "request_gb"):
            number = getattr(self, name)
            if number is not None and not 0 <= number < math.inf:
                raise Refusal(f"`{name}` must be a number of 0 or more, not {number}")
        if self.device_map is not None and self.device is not None:
            raise Refusal("a device map says where weights are: leave out `device`")
        if self.device_map is not None and self.compile:
            raise Refusal(
                "compiled blocks need weights that stay on one device: leave out `device_map` or "
                "`compile`"
            )
        if self.offload is not None and self.device_map is None:
            raise Refusal("`offload` goes with `device_map`")

    def _check_remote(self) -> None:
        """Refuse settings that the server decides on."""
        chosen = {
            "dtype": self.dtype,
            "device": self.device,
            "device_map": self.device_map,
            "attention": self.attention,
            "compile": self.compile,
            "maps": self.maps,
        }
        wrong = [f"`{name}`" for name, given in chosen.items() if given]
        if wrong:
            settings = " and ".join(wrong)
            raise Refusal(f"a server has chosen how its models are loaded: leave out {settings}")

    def _check_local(self) -> None:
        """Refuse settings that only a server takes."""
        given = {
            "host": self.host,
            "deploy": self.deploy,
            "sandbox_limit": self.sandbox_limit != SANDBOX_LIMIT,
            "patience": self.patience != PATIENCE,
            "request_seconds": self.request_seconds,
            "request_gb": self.request_gb,
        }
        wrong = [f"`{name}`" for name, is_given in given.items() if is_given]
        if wrong:
            raise Refusal(f"only a server takes {' and '.join(wrong)}: ask for `remote` too")


def _check_choice(name: str, chosen: str | None, choices: tuple[str, ...]) -> None:
    if chosen is not None and chosen not in choices:
        raise Refusal(f"no {name} {chosen!r}; there are: {', '.join(choices)}")
