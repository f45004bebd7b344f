"""Sweeps: runs that differ in a few config keys, each in its own workdir, with one table and plot.

    jaxconv sweep --config=FILE.py --workdir=DIR --grid='optimizer.learning_rate=0.01,0.1 seed=0:3'

In DIR:
NAME/          the workdir of one run; NAME gives the keys that differ, such as
               optimizer.learning_rate=0.01,seed=0
NAME.log       the output of that run
sweep.md       the table: one row per run, and means over seeds; sweep.json holds the same as data
sweep.png      the curves of all runs, and the final loss and accuracy against a numeric key
commands.txt   for Slurm: the command of each run, one per line
slurm_job.txt  for Slurm: the number of the job, by which runs are noticed that were cancelled
"""

import logging
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from jaxconv.checks import check_effects, differing_runs
from jaxconv.cloud import address_of
from jaxconv.drawing.fonts import save_figure
from jaxconv.errors import PREEMPTED, UserError, nearest
from jaxconv.files import expand, whole_file
from jaxconv.grid import Trial, make_trials, name_of
from jaxconv.look.curves import sweep_curves
from jaxconv.results import (
    FAILED,
    SLURM_JOB,
    figure_of,
    markdown,
    over_seeds,
    queued_runs,
    standing,
    with_cancelled,
)
from jaxconv.tasks import find_task
from jaxconv.train.workdir import locked, read_metrics, saved_config, write_json, write_lines

log = logging.getLogger(__name__)

LAUNCHERS = ("local", "slurm", "print")
# How often one command restarts a run that was preempted.
MOST_RESTARTS = 100


def sweep(
    spec: str,
    workdir: str,
    grid: Mapping[str, Sequence[str]],
    overrides: Sequence[str] = (),
    launcher: str = "local",
    slurm: str = "",
    table_only: bool = False,
) -> int:
    """Run the unfinished runs of a sweep, and write its table and plot.

    Args:
      spec: the experiment, see `load_config`.
      workdir: folder of the sweep.
      grid: values as text by key, from `parse_grid` and `read_grid`.
      overrides: `KEY=TEXT` for all runs.
      launcher: `local` runs one after another, each in its own process; `slurm` submits them to
        Slurm as one array with launch/slurm.sh; `print` only prints their commands.
      slurm: options for launch/slurm.sh.
      table_only: start nothing.

    Returns:
      The exit code: 0; 1 if a run failed; 75 if this process was stopped by SIGTERM, in which case
      the same command resumes.

    Raises:
      UserError: a config is invalid, a folder holds another run, or Slurm refuses.
    """
    if launcher not in LAUNCHERS:
        raise UserError(
            f"--launcher={launcher}: unknown launcher{nearest(launcher, LAUNCHERS)}; it must be "
            f"one of {', '.join(LAUNCHERS)}"
        )
    if slurm and launcher != "slurm":
        raise UserError(
            f"--slurm={slurm}: applies to --launcher=slurm, but the launcher is {launcher}"
        )
    folder = expand(workdir)
    if table_only and not folder.is_dir():
        raise UserError(
            f"--workdir={folder}: folder not found, and --table starts nothing", exit_code=1
        )
    trials = make_trials(spec, overrides, grid)
    _check_folders(trials, folder)
    left = [trial for trial in trials if standing(trial, folder)["state"] != "finished"]
    for trial in left:
        if not (folder / trial.name / "config.json").exists():
            check_effects(trial.config)
    commands = {trial.name: _arguments(spec, overrides, trial, folder) for trial in left}
    if launcher == "print" and not table_only:
        for arguments in commands.values():
            print(shlex.join(["jaxconv", *arguments]))
        return 0
    log.info(
        "%d runs, %d of them finished; workdir %s", len(trials), len(trials) - len(left), folder
    )
    _make(folder)
    if left and not table_only:
        write_table(trials, folder)  # so that `jaxconv report` knows the sweep from its start
    if launcher == "slurm" and left and not table_only:
        submit(list(commands.values()), folder, slurm)
        log.info("the same command with --table shows their progress")
        return 0
    stopped = launcher == "local" and not table_only and run_all(left, commands, folder)
    rows = write_table(trials, folder)
    print(markdown(rows))
    print(f"workdir: {address_of(folder) or folder}")
    if stopped:
        log.warning("stopped by SIGTERM; the same command resumes")
        return PREEMPTED
    return 1 if any(row["state"] == "failed" for row in rows) else 0


def write_table(trials: Sequence[Trial], workdir: Path) -> list[dict[str, Any]]:
    """Write sweep.json, sweep.md and sweep.png; returns the current rows, one per run."""
    rows = [standing(trial, workdir) for trial in trials]
    rows = with_cancelled(rows, queued_runs(workdir))
    write_json(workdir / "sweep.json", {"runs": rows, "over_seeds": over_seeds(rows)})
    write_lines(workdir / "sweep.md", [markdown(rows)])
    curves = {trial.name: read_metrics(workdir / trial.name) for trial in trials}
    key = _number_key(rows)
    task = find_task(trials[0].config.task.name)
    figure = sweep_curves(curves, key, _against(rows, key) if key else {}, task)
    with whole_file(workdir / "sweep.png") as temporary:
        save_figure(figure, temporary, dpi=120)
    return rows


def _number_key(rows: Sequence[Mapping[str, Any]]) -> str:
    """The first key of the grid, except the seed, that has several numeric values; or empty."""
    for key in rows[0]["values"]:
        values = {row["values"][key] for row in rows}
        if (
            key != "seed"
            and len(values) > 1
            and all(type(value) in (int, float) for value in values)
        ):
            return key
    return ""


def _against(
    rows: Sequence[Mapping[str, Any]], key: str
) -> dict[str, list[tuple[float, float, float]]]:
    """(value of a key, loss, figure) of each finished run, by its other values except the seed."""
    series: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        if row["state"] == "finished":
            others = {
                name: value for name, value in row["values"].items() if name not in (key, "seed")
            }
            series.setdefault(name_of(others), []).append(
                (row["values"][key], row["loss"], row[figure_of(row).key])
            )
    return series


def _check_folders(trials: Sequence[Trial], workdir: Path) -> None:
    """Raise UserError if a folder holds a run of another config."""
    for trial in trials:
        if (workdir / trial.name / "config.json").exists():
            differing = differing_runs(saved_config(workdir / trial.name), trial.config)
            if differing:
                raise UserError(
                    f"--workdir={workdir}: {trial.name} in it is a run with another "
                    f"{', '.join(differing)}; give another folder, or move that run away",
                    exit_code=1,
                )


def _arguments(spec: str, overrides: Sequence[str], trial: Trial, workdir: Path) -> list[str]:
    """The arguments of `jaxconv` that train one run."""
    settings = [f"--config.{setting}" for setting in (*overrides, *trial.settings)]
    folder = workdir / trial.name
    return ["train", f"--config={spec}", f"--workdir={address_of(folder) or folder}", *settings]


def _make(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot be written ({error.strerror}); give a writable folder",
            exit_code=1,
        ) from error


class Termination:
    """Records a SIGTERM to this process, and forwards it to the process of the current run.

    Attributes:
      asked: whether a SIGTERM was received.
      child: the process of the current run.
    """

    def __init__(self) -> None:
        self.asked = False
        self.child: subprocess.Popen | None = None

    def __enter__(self) -> "Termination":
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self.child is not None:
            self.child.terminate()


def run_all(trials: Sequence[Trial], commands: Mapping[str, Sequence[str]], workdir: Path) -> bool:
    """Run trials one after another, each in its own process, even if some fail.

    Returns:
      Whether it was stopped by SIGTERM.
    """
    with locked(workdir), Termination() as termination:
        for number, trial in enumerate(trials, 1):
            path = workdir / f"{trial.name}.log"
            log.info("%d/%d %s: see %s", number, len(trials), trial.name, path)
            run_once([sys.executable, "-m", "jaxconv", *commands[trial.name]], path, termination)
            row = standing(trial, workdir)
            figure = figure_of(row)
            shown = f"{figure.title} {figure.show(row[figure.key])}"
            result = row["why"] or f"{row['state']} at step {row['step']:,}, {shown}"
            log.info("%d/%d %s: %s", number, len(trials), trial.name, result)
            if termination.asked:
                return True
    return False


def run_once(command: Sequence[str], path: Path, termination: Termination) -> int:
    """Run a command, appending its output to a file; returns its exit code.

    If only the command was preempted, not this process, it is started again.
    """
    with open(path, "a", buffering=1, encoding="utf-8", errors="replace") as file:
        for _ in range(1 + MOST_RESTARTS):
            file.write(f"$ {shlex.join(command)}\n")
            with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            ) as process:
                termination.child = process
                if termination.asked:  # between two runs
                    process.terminate()
                code = _wait(process)
                termination.child = None
            if code != PREEMPTED or termination.asked:
                break
        if code and not termination.asked:
            file.write(f"{FAILED} {code}\n")
    return code


def _wait(process: subprocess.Popen) -> int:
    try:
        return process.wait()
    except KeyboardInterrupt:
        # Ctrl-C at a terminal reaches both; a signal to this process alone is forwarded.
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            # Windows has no other signal for Ctrl-C.
            process.send_signal(getattr(signal, "CTRL_C_EVENT", signal.SIGINT))
            process.wait()
        raise


def submit(commands: Sequence[Sequence[str]], workdir: Path, options: str) -> None:
    """Submit the runs to Slurm as one array with launch/slurm.sh.

    Raises:
      UserError: launch/slurm.sh is missing or fails.
    """
    script = Path(__file__).resolve().parent.parent / "launch" / "slurm.sh"
    if not script.is_file():
        raise UserError(
            "--launcher=slurm: needs a checkout of jaxconv, for launch/slurm.sh; or use "
            "--launcher=print"
        )
    write_lines(
        workdir / "commands.txt", [shlex.join(["jaxconv", *arguments]) for arguments in commands]
    )
    (workdir / SLURM_JOB).unlink(missing_ok=True)
    process = subprocess.run(
        [str(script), f"--array={workdir / 'commands.txt'}", *shlex.split(options)],
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    print(process.stdout, end="")
    if process.returncode:
        raise UserError(
            f"--launcher=slurm: launch/slurm.sh ended with exit code {process.returncode}",
            exit_code=1,
        )
    # Without it, which an option for sbatch may cause, nobody notices that the job was cancelled.
    if said := re.search(r"^Submitted batch job (\d+)", process.stdout, re.MULTILINE):
        write_lines(workdir / SLURM_JOB, [said[1]])
