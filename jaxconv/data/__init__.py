"""Data: sources (what an example is), loading (how batches reach the device), augmentation (jitted,
on the device).
"""

from jaxconv.data.arrays import from_arrays, from_sequence
from jaxconv.data.interface import DamagedError, Source

__all__ = ["DamagedError", "Source", "from_arrays", "from_sequence"]
