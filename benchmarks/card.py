"""What is known of the device that a benchmark runs on: its name, its driver, and its peak."""

import subprocess
from math import nan
from statistics import median
from time import perf_counter
from typing import Any

import torch

PUBLISHED = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "GH200": 989,
    "A100": 312, "L40S": 362, "L40": 181, "L4": 121, "A40": 150, "A10G": 70, "A10": 125,
    "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip
"""Dense products in bfloat16 with float32 sums, in TFLOP/s, of NVIDIA's data sheets, by a part of
the name; of several that fit, the first."""

QUERY = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")


def synchronize(device: str) -> None:
    """Wait until a device has done its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def reset_memory(device: str) -> None:
    """Forget how much memory a GPU has had in use."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def most_memory(device: str) -> float:
    """Return the most bytes of tensors on a GPU since then; not a number elsewhere."""
    return float(torch.cuda.max_memory_allocated(device)) if device.startswith("cuda") else nan


def timed(device: str, run: Any, rounds: int = 1, warm: int = 0) -> float:
    """Return the median of the seconds that a function takes, its work on the device included."""
    seconds = []
    for index in range(warm + rounds):
        synchronize(device)
        began = perf_counter()
        run()
        synchronize(device)
        if index >= warm:
            seconds.append(perf_counter() - began)
    return median(seconds)


def facts(device: str) -> dict[str, str]:
    """Return what a file says of the device."""
    found = {"device": device, "torch_version": torch.__version__}
    if not device.startswith("cuda"):
        return found | {"card": "CPU", "threads": str(torch.get_num_threads())}
    properties = torch.cuda.get_device_properties(device)
    found |= {
        "card": properties.name,
        "card_memory_bytes": str(properties.total_memory),
        "cuda": str(torch.version.cuda),
    }
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader", "-i"]
    index = str(torch.device(device).index or 0)
    try:
        done = subprocess.run([*command, index], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return found
    values = done.stdout.strip().split(", ")
    if done.returncode == 0 and len(values) == len(QUERY):
        names = (name.replace(".", "_") for name in QUERY)
        found |= dict(zip(names, values, strict=True))
    return found


def published_peak(card: str) -> float | None:
    """Return the operations a second that a card's data sheet states, if it is known."""
    for name, peak in PUBLISHED.items():
        if name in card:
            return peak * 1e12
    return None


def product_seconds(device: str, dtype: torch.dtype, size: int) -> float:
    """Return the seconds of a product of two square matrices of random numbers."""
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return timed(device, lambda: one @ other, rounds=10, warm=3)
