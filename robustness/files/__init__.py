"""Files: what they must hold, how they are written and read, and runs that resume from them."""

from typing import TYPE_CHECKING

from robustness.faces import lazy_face

if TYPE_CHECKING:
    from robustness.files.figures import save_figure
    from robustness.files.labels import layer_coords
    from robustness.files.metrics import Metric, TokenMetric
    from robustness.files.netcdf import load, save_with_lock
    from robustness.files.provenance import file_attributes
    from robustness.files.resumable import Run
    from robustness.files.sequences import mean_over_tokens, measured_sequences, sequence_coords

__all__ = [
    "Metric",
    "Run",
    "TokenMetric",
    "file_attributes",
    "layer_coords",
    "load",
    "mean_over_tokens",
    "measured_sequences",
    "save_figure",
    "save_with_lock",
    "sequence_coords",
]

# The help of commands names metrics, and needs no xarray. `netcdf.save` has no place here: nnsight
# gives every object a method of that name, packages too, which would be found first.
__getattr__ = lazy_face(
    __name__,
    {
        "Metric": "metrics",
        "Run": "resumable",
        "TokenMetric": "metrics",
        "file_attributes": "provenance",
        "layer_coords": "labels",
        "load": "netcdf",
        "mean_over_tokens": "sequences",
        "measured_sequences": "sequences",
        "save_figure": "figures",
        "save_with_lock": "netcdf",
        "sequence_coords": "sequences",
    },
)
