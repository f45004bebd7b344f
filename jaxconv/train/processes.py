"""The processes of one run: how they find each other, and how they are stopped."""

import contextlib
import logging
import os
import queue
import signal
import threading
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils

from jaxconv.errors import LostProcessError, UserError, short

log = logging.getLogger(__name__)

# Seconds of silence after which a process counts as lost and the others stop, and seconds that they
# wait for each other at the end.
_SILENT, _FAREWELL = 30, 20
# Seconds that a process with an error waits for the others to stop too.
_PARTING = 3
# Seconds until a line says that a process waits for the others, and until it gives up.
_QUIET, _PATIENCE = 10, 120
# What Slurm sets for each process that srun starts, and what JAX finds the others by.
_OF_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
_OF_OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_MCA_orte_hnp_uri")


def join(how: str) -> None:
    """Make this process one of several, before JAX looks for devices.

    Args:
      how: `off`; `on`: JAX finds the others by itself, on a TPU pod or under SLURM or Open MPI;
        `auto`: `on` if one of these has started several processes; or `HOST:PORT,N,I`: process I
        (from 0) of N, the first of which listens at HOST:PORT.

    Raises:
      UserError: `how` cannot be parsed, or the others cannot be found.
      LostProcessError: the others did not come, or Ctrl-C came first.
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
    _initialize(how, arguments)


def _initialize(how: str, arguments: dict[str, Any]) -> None:
    """Find the other processes, in a thread: signals are not heard within JAX's call.

    Raises:
      UserError: JAX refuses the arguments.
      LostProcessError: the others did not come, or Ctrl-C came first; JAX still waits for them.
    """
    came: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def find() -> None:
        try:
            jax.distributed.initialize(
                **arguments,
                # JAX aborts the process after this: give up before.
                initialization_timeout=2 * _PATIENCE,
                heartbeat_timeout_seconds=_SILENT,
                shutdown_timeout_seconds=_FAREWELL,
            )
            came.put(None)
        except Exception as error:  # handed to the thread that waits
            came.put(error)

    threading.Thread(target=find, daemon=True).start()
    whom = _awaited(arguments)
    try:
        try:
            error = came.get(timeout=_QUIET)
        except queue.Empty:
            log.info("waiting for %s, at most %d s; Ctrl-C stops it", whom, _PATIENCE)
            error = came.get(timeout=_PATIENCE - _QUIET)
    except queue.Empty:
        raise LostProcessError(
            f"--distributed={how}: {whom} did not come within {_PATIENCE} s; start all processes, "
            "or run this one alone with --distributed=off",
            exit_code=1,
        ) from None
    except KeyboardInterrupt:
        raise LostProcessError(
            f"interrupted while waiting for {whom}; nothing has been trained", exit_code=130
        ) from None
    if isinstance(error, (ValueError, RuntimeError)):
        raise UserError(f"--distributed={how}: {short(error, 300)}", exit_code=1) from error
    if error is not None:
        raise error


def part() -> bool:
    """Leave the other processes after an error; whether they left too.

    After an error of this process alone they do not, but wait for it in the middle of a step. Once
    it has exited, `Parallel.reraise_lost_process` ends them; JAX's own exit would keep them waiting
    and then abort them all.
    """
    left = threading.Event()

    def leave() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # then they did not
            jax.distributed.shutdown()
            left.set()

    threading.Thread(target=leave, daemon=True).start()
    return left.wait(_PARTING)


def _awaited(arguments: dict[str, Any]) -> str:
    """The processes that this one waits for, for a message."""
    count, process = arguments.get("num_processes"), arguments.get("process_id")
    if count is None and (launched := _launched()):
        count, process = launched.count, launched.process
    if count is None:
        return "the other processes of the run"
    first = arguments.get("coordinator_address")
    return f"the other {count - 1} of {count} processes of the run (this is process {process}" + (
        f"; process 0 listens at {first})" if first else ")"
    )


class Launched(NamedTuple):
    """What a launcher says of this process in its environment.

    Attributes:
      launcher: its name.
      count: number of the processes, as far as the environment tells.
      process: number of this one.
      lacks: variables by which JAX would find the others.
    """

    launcher: str
    count: int
    process: int
    lacks: tuple[str, ...]


def _launched() -> Launched | None:
    """The launcher that started several processes, of which this may be one; None for none."""
    hosts = [host for host in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    if len(hosts) > 1:
        return Launched("a TPU pod", len(hosts), _number("TPU_WORKER_ID"), ())
    if (count := _number("SLURM_NTASKS")) > 1:
        # In a shell of salloc or a batch script without srun, this is one process of a job for
        # several: either there is no step, or Slurm's step for the shell, of one task.
        lacks = tuple(name for name in _OF_SLURM if name not in os.environ)
        if "SLURM_STEP_NUM_TASKS" in os.environ and _number("SLURM_STEP_NUM_TASKS") < 2:
            lacks = lacks or ("SLURM_STEP_NUM_TASKS",)
        return Launched("Slurm", count, _number("SLURM_PROCID"), lacks)
    if (count := _number("OMPI_COMM_WORLD_SIZE")) > 1:
        lacks = tuple(name for name in _OF_OPEN_MPI if name not in os.environ)
        return Launched("Open MPI", count, _number("OMPI_COMM_WORLD_RANK"), lacks)
    return None


def _number(name: str) -> int:
    """A number in the environment; 0 if there is none."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else 0


def _several() -> bool:
    """Whether a launcher has started this process as one of several.

    Raises:
      UserError: it has, but JAX cannot find the others.
    """
    launched = _launched()
    if launched is None or not launched.lacks:
        return launched is not None
    if launched.launcher == "Open MPI" and "OMPI_COMM_WORLD_RANK" in os.environ:
        # Open MPI 5 no longer says where mpirun is. Alone, each would train the same workdir.
        raise UserError(
            f"Open MPI started {launched.count} processes, but does not set "
            f"{', '.join(launched.lacks)}, by which they would find each other; give each "
            f"--distributed=HOST:PORT,{launched.count},$OMPI_COMM_WORLD_RANK, or "
            "--distributed=off to train alone"
        )
    start = "srun" if launched.launcher == "Slurm" else "mpirun"
    log.warning(
        "%s's environment is for %d processes, but %s did not start this one: it trains alone",
        launched.launcher,
        launched.count,
        start,
    )
    return False


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
