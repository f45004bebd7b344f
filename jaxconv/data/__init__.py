"""Data: sources of examples, loading of batches, and augmentation (jitted, on the device)."""

from jaxconv.data.arrays import from_arrays
from jaxconv.data.interface import Arrays, DamagedError, Source, Target, generator
from jaxconv.data.iterate import batches
from jaxconv.data.sequences import from_sequence

__all__ = [
    "Arrays",
    "DamagedError",
    "Source",
    "Target",
    "batches",
    "from_arrays",
    "from_sequence",
    "generator",
]
