"""Fitted maps that a model carries for schedules which name them, such as `0..3-~4..7-8..`."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from robustness.errors import Refusal
from robustness.schedules import Mapped, Schedule, StreamMap
from robustness.schedules.steps import maps as maps_of

Fitted = StreamMap | Mapped
"""A step that takes a fitted map."""


@dataclass(frozen=True, eq=False)
class Maps:
    """Fitted maps by the step that takes each."""

    matrices: Mapping[Fitted, Tensor]
    """A of h A + b, or T of h + (step(h) − h) T: float64 of shape (width, width)."""
    offsets: Mapping[Fitted, Tensor] = field(default_factory=dict)
    """b of every map of the stream: float64 of shape (width,)."""
    ridges: Mapping[Fitted, float] = field(default_factory=dict)
    """Ridge with which each was fitted, relative to the mean square of its inputs."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Where they come from: model and its weights, text, schedule and version of stages."""

    def sha256(self) -> str:
        """Hash of the maps' names and numbers."""
        digest = hashlib.sha256()
        for step in sorted(self.matrices, key=str):
            digest.update(str(step).encode())
            for tensor in (self.matrices[step], self.offsets.get(step)):
                if tensor is not None:
                    digest.update(tensor.contiguous().cpu().numpy().astype("<f8").tobytes())
        return digest.hexdigest()

    def names(self) -> str:
        """Return the texts of all maps, for messages."""
        return ", ".join(sorted(map(str, self.matrices)))


def check_owner(maps: Maps, identity: Mapping[str, str], width: int) -> None:
    """Refuse maps that belong to another model.

    Parameters
    ----------
    maps : Maps
        Fitted maps.
    identity : mapping of str to str
        Identity of the model that is to take them.
    width : int
        Number of features of its residual stream.
    """
    facts = {"config_sha256": "configuration", "weights_sha256": "weights"}
    if "weights_sha256" not in identity:
        # A model from the hub is known by its commit.
        facts["revision"] = "revision"
    for key, what in facts.items():
        fitted, own = maps.attributes.get(key), identity.get(key)
        if fitted and own and fitted != own:
            source = maps.attributes.get("model", "another model")
            raise Refusal(
                f"the maps were fitted to {source}, whose {what} {identity['model']} does not "
                "have: fit maps to this model"
            )
    for step, matrix in maps.matrices.items():
        if tuple(matrix.shape) != (width, width):
            raise Refusal(
                f"the map {step} is of width {len(matrix)}, and {identity['model']} of width "
                f"{width}: fit maps to this model"
            )


def check_fitted(name: str, fitted: Maps | None, steps: Schedule, *, remote: bool) -> None:
    """Refuse steps that take a map which a model has not.

    Parameters
    ----------
    name : str
        Name of the model.
    fitted : Maps, optional
        Maps of the model.
    steps : tuple
        Steps of schedules.
    remote : bool
        Whether the model is on a server.
    """
    for step in steps:
        for needed in maps_of(step):
            if remote:
                raise Refusal(
                    f"{needed} is a fitted map, and maps are not sent to servers: open {name} on "
                    "this machine"
                )
            if fitted is None or needed not in fitted.matrices:
                there = f"has the maps {fitted.names()}" if fitted else "has no fitted maps"
                raise Refusal(
                    f"{name} {there}, not {needed}: fit it with robustness.healing.fit, and give "
                    "the file as `maps`"
                )
