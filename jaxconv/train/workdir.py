"""The folder of one run, and what keeps it one run.

config.json      the config, as it began
code/            the files of own code that it names, as they were then, see code.py
data.json        what the run depends on: image shape, class names, number and checksum of the
                 examples
versions.json    one entry a start: from which step, with which versions and devices
metrics.jsonl    one JSON object a line: `step` and names such as `train/loss`
tensorboard/     the same numbers
checkpoints/     one folder a step
curves.png       loss and accuracy against step
report.html      all that there is to see of the run, as one page
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import jax
from ml_collections import ConfigDict

from jaxconv.checks import check_config, differing_runs
from jaxconv.config import MAY_DIFFER, default_config, flatten
from jaxconv.data.sources import GIVEN
from jaxconv.errors import UserError, short
from jaxconv.files import expand, whole_file
from jaxconv.models.network import LAYOUT
from jaxconv.own import checksums, is_own
from jaxconv.train.code import as_written, keep, with_code

PACKAGES = (
    "jaxconv",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "ml-collections",
    "pillow",
)

# Keys that older runs lack, and whose default is what those did.
NEWER = (
    "task",
    "data.arrays",
    "data.text.header",
    "augment.colour_jitter.probability",
    "augment.grey",
    "augment.blur",
    "augment.solarise",
)


def open_workdir(path: str, config: ConfigDict, restart: bool) -> tuple[Path, TextIO]:
    """Make the folder, or find in it the same run; lock it for this process.

    Args:
      path: the folder.
      config: the run's config.
      restart: move a run that is there aside, to PATH.old-N.

    Returns:
      The folder, and the lock, which holds as long as it is open.

    Raises:
      UserError: it cannot be written, another process trains in it, or it holds a run with another
        config.
    """
    workdir = expand(path)
    try:
        if restart and any((workdir / part).exists() for part in ("config.json", "checkpoints")):
            locked(workdir).close()
            workdir.rename(
                next(
                    free
                    for n in range(1, 10**6)
                    if not (free := workdir.with_name(f"{workdir.name}.old-{n}")).exists()
                )
            )
        workdir.mkdir(parents=True, exist_ok=True)
        lock = locked(workdir)
        try:
            _check_config_of_run(workdir, config)
        except BaseException:
            lock.close()
            raise
    except OSError as error:
        raise UserError(
            f"--workdir={path}: cannot be written ({error.strerror or error}); give a folder that "
            "can",
            exit_code=1,
        ) from error
    return workdir, lock


def locked(workdir: Path) -> TextIO:
    """A lock on a folder that holds as long as it is open; raises UserError where another process
    has it.
    """
    lock = open(workdir / ".lock", "w")  # noqa: SIM115, it stays open as long as the run
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)  # it may be `in_use`, which looks for a moment
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise UserError(
            f"--workdir={workdir}: another process is training there; wait for it, or give another "
            "folder",
            exit_code=1,
        ) from error
    return lock


def in_use(workdir: Path) -> bool:
    """Whether a process trains in the folder now."""
    try:
        with open(workdir / ".lock") as lock:
            # Shared, and given back at once: `locked` asks a second time before it complains.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _check_config_of_run(workdir: Path, config: ConfigDict) -> None:
    if not (workdir / "config.json").exists():
        if (workdir / "checkpoints").exists():
            raise UserError(
                f"--workdir={workdir}: holds checkpoints but no config.json, so that nobody knows "
                "of what; move them aside with --restart",
                exit_code=1,
            )
        return
    saved = saved_config(workdir)
    if config.data.source == GIVEN:
        # A run of an earlier version has the config's own name here; what the examples are is
        # compared when they are there.
        saved.data.source = GIVEN
    old, new, differing = flatten(saved), flatten(config), differing_runs(saved, config)
    if differing:
        shown = ", ".join(
            f"{key} ({old.get(key, 'not set')!r} there, {new.get(key, 'not set')!r} here)"
            for key in differing
        )
        raise UserError(
            f"--workdir={workdir}: holds a run with another config: {shown}; give another folder, "
            "or move that run aside with --restart",
            exit_code=1,
        )


def saved_config(workdir: Path) -> ConfigDict:
    """The config of the run in a workdir.

    Raises:
      UserError: there is no run, or its config is damaged or of another version.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(
            f"--workdir={workdir}: holds no run (there is no config.json); train one with `jaxconv "
            f"train --workdir={workdir}`"
        )
    config = _to_config(read_json(path, dict))
    try:
        # The code of a task of one's own is not run only to read a config.
        check_config(config, with_task=not is_own(config.task.name))
    except UserError as error:
        raise UserError(
            f"--workdir={workdir}: holds a run that this version of jaxconv cannot resume "
            f"({error}); take the version in its "
            "versions.json, give another folder, or move that run aside with --restart",
            exit_code=1,
        ) from error
    return config


def opened_config(workdir: Path) -> ConfigDict:
    """The config to open the run in a workdir by: with the workdir's code, see `code.with_code`.
    For what is shown and compared, `saved_config` has the names as they were written.

    Raises:
      UserError: as `saved_config`; or its code may not be run, or is damaged.
    """
    return with_code(Path(workdir), saved_config(workdir))


def _to_config(value: dict[str, Any]) -> ConfigDict:
    """JSON knows no tuples: every list of a config was one."""

    def tuples(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: tuples(inner) for key, inner in item.items()}
        return tuple(tuples(inner) for inner in item) if isinstance(item, list) else item

    config = ConfigDict(tuples(value))
    _add_newer_keys(config, default_config())
    return config.lock()


def _add_newer_keys(config: ConfigDict, defaults: ConfigDict, prefix: str = "") -> None:
    """Give a run that is older than a key the default, where that is what it has computed."""
    for key, default in defaults.items():
        if key not in config:
            if f"{prefix}{key}".startswith((*MAY_DIFFER, *NEWER)):
                config[key] = default
        elif isinstance(default, ConfigDict) and isinstance(config[key], ConfigDict):
            _add_newer_keys(config[key], default, f"{prefix}{key}.")


def saved_data(workdir: Path) -> dict[str, Any]:
    """What the data of the run in a workdir looked like; raises UserError where that is damaged."""
    found = read_json(workdir / "data.json", dict)
    if (
        not {"image_shape", "kind", "cropped", "class_names", "train_examples", "layout"}
        <= found.keys()
    ):
        raise UserError(
            f"{workdir / 'data.json'}: is damaged; bring it back, or start anew with --restart",
            exit_code=1,
        )
    if found["layout"] != LAYOUT:
        raise UserError(
            f"--workdir={workdir}: holds parameters under the names of layout {found['layout']}, "
            f"and this version has layout {LAYOUT}; "
            "go on with the version in versions.json, or start anew with --restart",
            exit_code=1,
        )
    return found


def begin_or_compare(workdir: Path, config: ConfigDict, description: dict[str, Any]) -> None:
    """Write what the run is, now that it can begin; or, where it began before, compare the data
    with what it was then.

    Raises:
      UserError: the data has changed since, or the workdir has no room for the run's own code.
    """
    if not (workdir / "config.json").exists():
        keep(workdir, config)
        write_json(workdir / "data.json", {**description, "layout": LAYOUT})
        write_json(workdir / "config.json", config.to_dict())
        return
    before = saved_data(workdir)
    for key in description:
        if before.get(key) != description[key]:
            raise UserError(
                f"--workdir={workdir}: the data has changed since the run began: {key} was "
                f"{short(before.get(key))}, now it is "
                f"{short(description[key])}; bring it back, or start anew with --restart",
                exit_code=1,
            )


def note_versions(workdir: Path, step: int, config: ConfigDict) -> list[str]:
    """Add an entry to versions.json; returns what differs from the entry before, in words."""
    path = workdir / "versions.json"
    entries = read_json(path, list) if path.exists() else []
    devices = jax.devices()
    now = {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "device": devices[0].device_kind,
        "devices": len(devices),
        **{as_written(workdir, name): crc for name, crc in checksums(config).items()},
    }
    before = [entry for entry in entries if isinstance(entry, dict)]
    differing = sorted(
        {
            f"{name} {entry.get(name)} -> {value}"
            for entry in before
            for name, value in now.items()
            if entry.get(name) != value
        }
    )
    changeable = {
        key: value
        for key, value in flatten(config).items()
        if key.startswith((*MAY_DIFFER, "steps", "epochs"))
    }
    write_json(
        path,
        [
            *entries,
            {"from_step": step, **now, "platform": platform.platform(), "config": changeable},
        ],
    )
    return differing


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def read_json(path: Path, kind: type) -> Any:
    """Read a JSON file of a workdir, a dict or a list; raises UserError where it is damaged."""
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, kind):
            raise ValueError(f"it holds no {kind.__name__}")
        return value
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); bring it back, or start anew with --restart",
            exit_code=1,
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_lines(path, [json.dumps(value, indent=2)])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file whole or not at all, also where the machine loses its power."""
    with whole_file(path) as temporary, open(temporary, "w") as file:
        file.writelines(line + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def read_metrics(workdir: Path, up_to: float = float("inf")) -> list[dict[str, float]]:
    """The rows of metrics.jsonl with `step` at most `up_to`; a line that was cut off by a kill is
    left out.
    """
    path = Path(workdir) / "metrics.jsonl"
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return [
        row
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= up_to
    ]
