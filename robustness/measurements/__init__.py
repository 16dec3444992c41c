"""Measurements of the clean run at every depth, of short texts, and of weights."""

from robustness.measurements.measurement import MEASUREMENTS, Measurement, local_attention
from robustness.measurements.observation import observe
from robustness.measurements.prediction_neurons import NeuronSettings, neurons
from robustness.measurements.requirements import unfit

__all__ = [
    "MEASUREMENTS",
    "Measurement",
    "NeuronSettings",
    "local_attention",
    "neurons",
    "observe",
    "unfit",
]
