"""Shared by all benchmarks: description of the machine, interleaved repeats, medians and spread."""

import os
import platform
import statistics
from collections.abc import Callable
from importlib.metadata import version


def machine(*packages: str) -> str:
    """One line: processor or accelerator, cores, and versions of Python, jax and the packages."""
    import jax

    device = jax.devices()[0]
    kind = processor() if device.platform == "cpu" else device.device_kind
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", *packages))
    return f"{kind}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def processor() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                line.split(":")[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def interleaved(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run all in turn, `repeats` times; returns their results by name."""
    results: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            results[name].append(run())
    return results


def ratios(results: dict[str, list[float]], name: str, base: str) -> str:
    """Median, smallest and largest ratio of two interleaved runs, pair by pair."""
    pairs = [a / b for a, b in zip(results[name], results[base], strict=True)]
    return (
        f"{statistics.median(pairs):.3f} (median of {len(pairs)}; {min(pairs):.3f} to "
        f"{max(pairs):.3f})"
    )
