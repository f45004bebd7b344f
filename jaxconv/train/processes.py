"""The processes of one run: how they find each other, and how they are stopped."""

import os
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxconv.errors import UserError, short

# Seconds of silence after which a process counts as lost and the others stop, and seconds that they
# wait for each other at the end.
_SILENT, _FAREWELL = 30, 20
# Variables that show that a launcher has started several processes; JAX finds the rest by itself.
_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
_OF_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")


def join(how: str) -> None:
    """Make this process one of several, before JAX looks for devices.

    Args:
      how: `off`; `on`: JAX finds the others by itself, on a TPU pod or under SLURM or Open MPI;
        `auto`: `on` if one of these has started several processes; or `HOST:PORT,N,I`: process I
        (from 0) of N, the first of which listens at HOST:PORT.

    Raises:
      UserError: `how` cannot be parsed, or the others cannot be found.
    """
    if how == "off" or (how == "auto" and not _several()):
        return
    arguments: dict[str, Any] = {}
    if how not in ("on", "auto"):
        address, *numbers = how.split(",")
        if (
            len(numbers) != 2
            or not all(number.isdecimal() for number in numbers)
            or not address.rpartition(":")[2].isdecimal()
        ):
            raise UserError(
                f"--distributed={how}: must be auto, on, off, or HOST:PORT,N,I such as "
                "10.0.0.1:8476,2,0"
            )
        count, process = map(int, numbers)
        if process >= count:
            raise UserError(
                f"--distributed={how}: processes are counted from 0, so the last of {count} "
                f"is {count - 1}"
            )
        arguments = {"coordinator_address": address, "num_processes": count, "process_id": process}
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=120,
            heartbeat_timeout_seconds=_SILENT,
            shutdown_timeout_seconds=_FAREWELL,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--distributed={how}: {short(error, 300)}", exit_code=1) from error


def _several() -> bool:
    if "SLURM_NTASKS" in os.environ and not all(name in os.environ for name in _OF_SLURM):
        return False  # in a job, but not started by srun
    hosts = (
        os.environ["TPU_WORKER_HOSTNAMES"].split(",")
        if "TPU_WORKER_HOSTNAMES" in os.environ
        else []
    )
    return len(hosts) > 1 or any(
        int(os.environ[name]) > 1 for name in _COUNTS if name in os.environ
    )


class Preemption:
    """Whether SIGTERM has asked the run to stop; several processes agree on the step through JAX.

    Args:
      processes: number of processes of the run.
    """

    def __init__(self, processes: int):
        self._processes, self._asked, self._before = processes, False, None
        self._calls = 0

    def __enter__(self) -> "Preemption":
        # Python can only set signal handlers in the main thread; some notebooks use another.
        if self._processes == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: Any) -> None:
        self._asked = True

    def reached(self) -> bool:
        """Whether to save and stop now; every process must ask once per training call."""
        if self._processes == 1:
            return self._asked
        # Count calls, not steps: JAX agrees on the next number, which several steps per call could
        # skip.
        self._calls += 1
        return multihost_utils.reached_preemption_sync_point(self._calls)
