"""How programs are compiled for the processor they run on.

A CPU orders the operations of a step for memory: by default XLA orders them for running many at
once, which two cores cannot. Memory for the values in between, and time of a training step at batch
8 on two cores (without huge pages, see launch/common.sh):

    ConvNeXt-T      3,466 MB to 1,456    1.89 s to 1.43
    MobileNet v2    1,144 MB to 525      0.48 s to 0.36
    ResNet-50       1,055 MB to 660      1.52 s to 1.55
    GoogLeNet         629 MB to 392      0.67 s to 0.64
"""

import jax


def compiler_options() -> dict[str, str]:
    """Options for `jax.jit` with which steps run best here; none for a GPU or a TPU.

    `jax.jit(step, compiler_options=jaxconv.compiler_options())`. The commands use them.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
