"""Writing of fitted maps, by the way of all files to the disk."""

from pathlib import Path

from safetensors.torch import save

from robustness.files import ownership
from robustness.files.atomic import write_with_lock
from robustness.files.directory import unwritable
from robustness.models.maps import Maps
from robustness.models.maps_file import contents


def save_maps(maps: Maps, path: str | Path) -> Path:
    """Write fitted maps as a `.safetensors` file, and return its path.

    A file of maps is replaced; any other file stays.

    Raises
    ------
    Unwritable
        If the path is no place for it.
    """
    path = Path(path)
    ownership.check(path, ownership.MAPS)
    tensors, metadata = contents(maps)
    data = save(tensors, metadata)
    with unwritable(path.parent):
        write_with_lock(path, lambda file: file.write_bytes(data))
    return path
