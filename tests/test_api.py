"""What is public: the page lists exactly what the faces of the packages export."""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRAVELLING = "robustness.trace"
"""The package that goes to servers; its face is empty."""

PACKAGES = [
    ".".join(face.parent.relative_to(ROOT).parts)
    for root in ("robustness", "probes", "recipes")
    for face in sorted((ROOT / root).glob("**/__init__.py"))
]


def listed() -> dict[str, list[str]]:
    """Return the names that the page lists, by package."""
    sections = re.split(r"^## `([\w.]+)`$", (ROOT / "docs/api.md").read_text(), flags=re.M)[1:]
    names = (re.findall(r"^- `(\w+)`: \S", text, re.M) for text in sections[1::2])
    return dict(zip(sections[::2], names, strict=True))


def test_the_page_lists_what_the_faces_export():
    exported = {}
    for package in PACKAGES:
        names = [] if package == TRAVELLING else import_module(package).__all__
        if names:
            exported[package] = sorted(names, key=str.lower)
    assert listed() == exported


@pytest.mark.parametrize("package", sorted(listed()))
def test_every_public_name_is_there_and_described(package):
    face = import_module(package)
    for name in face.__all__:
        thing = getattr(face, name)
        assert getattr(thing, "__doc__", "x"), f"{package}.{name}"
    with pytest.raises(AttributeError):
        face.no_such_name  # noqa: B018


@pytest.mark.parametrize("package", sorted(listed()))
def test_a_name_that_nnsight_gives_to_every_object_is_found_in_no_face_that_loads_late(package):
    """A module's `__getattr__` is asked last: `from robustness.files import save` was nnsight's."""
    import nnsight  # noqa: F401

    face = import_module(package)
    late = hasattr(face, "__getattr__")
    assert hasattr(object, "save") and not [x for x in face.__all__ if late and hasattr(object, x)]
