"""How programs are compiled for the processor they run on.

A CPU orders the operations of a step for memory: by default XLA orders them for running many at
once, which two cores cannot. Memory for the values in between, and time of a training step at batch
8 on two cores (without huge pages, see launch/common.sh):

    ConvNeXt-T      3,466 MB to 1,456    1.89 s to 1.43
    MobileNet v2    1,144 MB to 525      0.48 s to 0.36
    ResNet-50       1,055 MB to 660      1.52 s to 1.55
    GoogLeNet         629 MB to 392      0.67 s to 0.64
"""

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax


def compiler_options() -> dict[str, str]:
    """Options for `jax.jit` with which steps run best here; none for a GPU or a TPU.

    `jax.jit(step, compiler_options=jaxconv.compiler_options())`. The commands use them.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def hand_back_memory() -> None:
    """Give memory that is free in this process back to the system, where its C library can.

    Compiling a step leaves some 500 MB behind that nothing uses, beside which the step then runs:
    Mask R-CNN's process falls from 1,680 MB to 1,110.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)


def compiled_first(jitted: Any) -> Callable:
    """A jitted function of one shape of arguments, compiled before the first call, not during it.

    Between the two the compiler's memory is handed back.
    """
    held: list[Callable] = []

    @functools.wraps(jitted)
    def call(*args: Any) -> Any:
        if not held:
            held.append(jitted.lower(*args).compile())
            hand_back_memory()
        return held[0](*args)

    return call
