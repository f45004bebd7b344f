"""The folder of one run, and the checks that it stays the same run.

config.json      the config of the run; settings that may change are those of its last start
code/            the custom code files that it names, as they were then, see code.py
data.json        the data that the run depends on: image shape, class names, number and checksum of
                 the examples
versions.json    one entry per start: from which step, with which versions and devices
metrics.jsonl    one JSON object per line: `step`, names such as `train/loss`, and the `seconds` of
                 training so far, of all starts together; null for NaN
stopped.json     step and reason, if the run was stopped early
tensorboard/     the same numbers
checkpoints/     one folder per step
curves.png       loss and accuracy against step
report.html      everything about the run, on one page
"""

import contextlib
import copy
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import jax
from ml_collections import ConfigDict

from jaxconv import cloud
from jaxconv.checks import check_config, differing_runs
from jaxconv.config import MAY_DIFFER, default_config, flatten
from jaxconv.data.sources import GIVEN
from jaxconv.disk import is_locked, lock
from jaxconv.errors import UserError, short
from jaxconv.files import PRINTABLE, expand, to_json, whole_file
from jaxconv.models.network import LAYOUT
from jaxconv.own import checksums, is_own, names_in
from jaxconv.train.code import as_written, keep, with_code
from jaxconv.train.other_data import Overrides, with_other_data
from jaxconv.values import AnyConfig
from jaxconv.version import __version__

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

# Keys that older runs lack, and whose default is what those runs did.
NEWER = (
    "task",
    "data.background",
    "data.interpolation",
    "data.frames",
    "optimizer.kwargs",
    "optimizer.schedule.kwargs",
    "optimizer.adaptive_clip",
    "loss.class_weights",
    "data.arrays",
    "data.text.header",
    "data.text.words",
    "data.text.coarse",
    "data.folds",
    "data.fold",
    "data.fold_seed",
    "data.folder.test",
    "data.scenes",
    "data.coco",
    "data.nifti",
    "data.boxes",
    "data.max_boxes",
    "data.annotations",
    "data.canvas",
    "data.csv",
    "data.sides",
    "augment.large_scale_jitter",
    "augment.kept_objects",
    "augment.mosaic",
    "augment.colour_jitter.probability",
    "augment.grey",
    "augment.blur",
    "augment.solarise",
    "augment.padding",
    "augment.alternating_flip",
    "distill",
)


def open_workdir(path: str, config: AnyConfig, restart: bool) -> tuple[Path, TextIO | cloud.Mirror]:
    """Create the folder, or check that it holds the same run; lock it for this process.

    One in a bucket is copied to this machine, and what the run writes is put there.

    Args:
      path: the folder.
      config: the run's config.
      restart: move an existing run aside, to PATH.old-N.

    Returns:
      The folder, and the lock, which is held until it is closed.

    Raises:
      UserError: it cannot be written, another process trains in it, or it holds a run with another
        config.
    """
    workdir = expand(path)
    try:
        if restart and any((workdir / part).exists() for part in ("config.json", "checkpoints")):
            locked(workdir).close()
            move = cloud.set_aside if cloud.address_of(workdir) else Path.rename
            move(workdir, _free_name(workdir))
        workdir.mkdir(parents=True, exist_ok=True)
        held = locked(workdir)
        try:
            held = cloud.Mirror(workdir, held) if cloud.address_of(workdir) else held
            _check_config_of_run(workdir, config)
        except BaseException:
            held.close()
            raise
    except OSError as error:
        raise UserError(
            f"--workdir={path}: cannot be written ({error.strerror or error}); give a folder that "
            "can",
            exit_code=1,
        ) from error
    return workdir, held


def _free_name(workdir: Path) -> Path:
    names = (workdir.with_name(f"{workdir.name}.old-{n}") for n in range(1, 10**6))
    taken = cloud.is_taken if cloud.address_of(workdir) else Path.exists
    return next(free for free in names if not taken(free))


def locked(workdir: Path) -> TextIO:
    """Lock a folder until the returned file is closed; raises UserError if it is already locked."""
    file = open(workdir / ".lock", "w")  # noqa: SIM115, it stays open as long as the run
    try:
        try:
            lock(file)
        except BlockingIOError:
            time.sleep(0.1)  # it may be `in_use`, which holds it for a moment
            lock(file)
    except BlockingIOError as error:
        file.close()
        raise UserError(
            f"--workdir={workdir}: another process is training there; wait for it, or choose "
            "another folder",
            exit_code=1,
        ) from error
    return file


def in_use(workdir: Path) -> bool:
    """Whether a process is training in the folder."""
    return is_locked(workdir) or cloud.in_use(workdir)


def _check_config_of_run(workdir: Path, config: AnyConfig) -> None:
    if not (workdir / "config.json").exists():
        if (workdir / "checkpoints").exists():
            raise UserError(
                f"--workdir={workdir}: holds checkpoints but no config.json, so their run is "
                "unknown; move them aside with --restart",
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
            f"--workdir={workdir}: holds a run with another config: {shown}; choose another "
            "folder, or move that run aside with --restart",
            exit_code=1,
        )


def saved_config(workdir: Path) -> AnyConfig:
    """The config of the run in a workdir.

    Raises:
      UserError: there is no run, or its config is damaged or of another version.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(
            f"--workdir={workdir}: holds no run (config.json not found); train one with `jaxconv "
            f"train --workdir={workdir}`"
        )
    config = _to_config(read_json(path, dict))
    try:
        # Reading a config does not run the code of a custom task.
        check_config(config, with_task=not is_own(config.task.name))
    except UserError as error:
        raise UserError(
            f"--workdir={workdir}: holds a run that this version of jaxconv cannot resume "
            f"({error}); use the version in its versions.json, choose another folder, or move that "
            "run aside with --restart",
            exit_code=1,
        ) from error
    return config


def opened_config(workdir: Path, overrides: Overrides = ()) -> AnyConfig:
    """The config to open the run in a workdir with: it uses the workdir's copy of the code.

    See `code.with_code`. For display and comparison, `saved_config` has the names as written.

    Args:
      workdir: the run's workdir.
      overrides: `KEY=VALUE` each, to measure it on other data, see other_data.py.

    Raises:
      UserError: as in `saved_config`; its code may not be run, or is damaged; or an override cannot
        be made.
    """
    saved = saved_config(workdir)
    if not overrides:
        return with_code(Path(workdir), saved)
    changed = with_other_data(saved, overrides)
    # What the command names is the user's own: it is no code of the workdir.
    mine = set(names_in(changed).values()) - set(names_in(saved).values())
    return with_code(Path(workdir), changed, mine)


def _to_config(value: dict[str, Any]) -> AnyConfig:
    """Convert from JSON, which has no tuples: every list of a config was a tuple."""

    def tuples(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: tuples(inner) for key, inner in item.items()}
        return tuple(tuples(inner) for inner in item) if isinstance(item, list) else item

    config = ConfigDict(tuples(value))
    _add_newer_keys(config, default_config())
    return config.lock()


def _add_newer_keys(config: AnyConfig, defaults: AnyConfig, prefix: str = "") -> None:
    """Add keys that are newer than the run, if their default is what the run computed."""
    for key, default in defaults.items():
        if key not in config:
            if f"{prefix}{key}".startswith((*MAY_DIFFER, *NEWER)):
                config[key] = default
        elif isinstance(default, ConfigDict) and isinstance(config[key], ConfigDict):
            _add_newer_keys(config[key], default, f"{prefix}{key}.")


def saved_data(workdir: Path) -> dict[str, Any]:
    """The description of a run's data in its workdir; raises UserError if it is damaged."""
    found = read_json(workdir / "data.json", dict)
    if (
        not {"image_shape", "kind", "cropped", "class_names", "train_examples", "layout"}
        <= found.keys()
    ):
        raise UserError(
            f"{workdir / 'data.json'}: is damaged; restore it, or start from scratch with "
            "--restart",
            exit_code=1,
        )
    if found["layout"] != LAYOUT:
        raise UserError(
            f"--workdir={workdir}: holds parameters of layout {found['layout']}, but this version "
            f"uses layout {LAYOUT}; continue with the version in versions.json, or start from "
            "scratch with --restart",
            exit_code=1,
        )
    return found


def begin_or_compare(workdir: Path, config: AnyConfig, description: dict[str, Any]) -> None:
    """Write the config, code and data description of a new run, or compare the data of an old one.

    Raises:
      UserError: the data has changed since the run began, or the place of the run's code is taken.
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
                f"{short(description[key])}; restore it, or start from scratch with --restart",
                exit_code=1,
            )


def note_versions(workdir: Path, step: int, config: AnyConfig) -> list[str]:
    """Note a start of the run: add an entry to versions.json, and update config.json.

    Returns:
      Descriptions of what differs from earlier entries.
    """
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
    changeable = {key: value for key, value in flatten(config).items() if _may_change(key)}
    write_json(
        path,
        [
            *entries,
            {"from_step": step, **now, "platform": platform.platform(), "config": changeable},
        ],
    )
    _update_config(workdir / "config.json", changeable)
    return differing


def _may_change(key: str) -> bool:
    """Whether a setting may change when a run is resumed, if only the length of the training."""
    sections = [f"{name}." for name in MAY_DIFFER]
    return key in (*MAY_DIFFER, "steps", "epochs") or key.startswith(tuple(sections))


def _update_config(path: Path, settings: dict[str, Any]) -> None:
    """Change settings in config.json, atomically, if they differ from the ones there."""
    saved = read_json(path, dict)
    before = copy.deepcopy(saved)
    for key, value in settings.items():
        *sections, last = key.split(".")
        section = saved
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    if saved != before:
        write_json(path, saved)


def stopped_early(workdir: Path) -> dict[str, Any]:
    """`step`, `why` and `early_stopping` of a run that was stopped early; otherwise empty."""
    path = Path(workdir) / "stopped.json"
    return read_json(path, dict) if path.is_file() else {}


def _version(package: str) -> str:
    if package == "jaxconv":
        return __version__  # pip's note may be that of an earlier install of the same checkout
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def read_json(path: Path, kind: type) -> Any:
    """Read a dict or a list from a JSON file of a workdir; raises UserError if it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, kind):
            raise ValueError(f"it is not a {kind.__name__}")
        return value
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); restore it, or start from scratch with --restart",
            exit_code=1,
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_lines(path, [to_json(value, indent=2)])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file atomically, even if the machine loses power."""
    with (
        whole_file(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors=PRINTABLE) as file,
    ):
        file.writelines(line + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def read_metrics(workdir: Path, up_to: float = float("inf")) -> list[dict[str, float]]:
    """The rows of metrics.jsonl with `step` at most `up_to`, without lines cut off by a kill.

    A number that was infinite or NaN is NaN.
    """
    path = Path(workdir) / "metrics.jsonl"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    rows = [
        row
        for row in _json_lines(text.splitlines())
        if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= up_to
    ]
    if "null" not in text:
        return rows
    return [
        {name: math.nan if value is None else value for name, value in row.items()} for row in rows
    ]


def _json_lines(lines: list[str]) -> list[Any]:
    """The values of the lines that are JSON."""
    # As one array, in a third of the time; a line that is not whole makes it invalid or shorter.
    if all(line.startswith("{") for line in lines):
        with contextlib.suppress(json.JSONDecodeError):
            rows = json.loads(f"[{','.join(lines)}]")
            if len(rows) == len(lines):
                return rows
    rows = []
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows
