"""`jaxconv doctor`: one page about this installation, to paste into a bug report.

It must also work where something is broken. So this file needs the standard library alone, and
everything that may fail or hang (imports, the search for devices) is tried in another process,
which tells one line at a time: if it dies or takes too long, the page says at what, and the rest is
tried in a new one.

The page has no secrets: of environment variables only the harmless ones of `SHOWN` are printed, the
home folder is `~`, and the values of variables such as HF_TOKEN are masked wherever they turn up.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxconv.disk import cache_folder
from jaxconv.errors import EXTRAS, columns, human_bytes, padded, short
from jaxconv.version import __version__

# What every installation has, besides the modules of `EXTRAS`; a test compares with setup.cfg.
ALWAYS = ("jax", "jaxlib", "flax", "optax", "ml_collections", "numpy")
# What one gets by each extra.
GIVES = {
    "train": "the commands that train, evaluate and draw",
    "fast": "JPEG files decoded about twice as fast",
    "coco": "COCO's annotations: coco:DIR",
    "nifti": "medical volumes: nifti:DIR",
    "hub": "weights from the Hugging Face hub: hf:OWNER/REPO",
    "keras": "weights that Keras has written: .h5, .keras",
    "cloud": "workdirs and data in buckets: gs://BUCKET/PATH, s3://BUCKET/PATH",
    "prepare": "jaxconv prepare, for data sets of TFDS",
    "playground": "jaxconv playground",
}
# Packages that come with an extra of JAX's, by extra.
ACCELERATORS = {"cuda": ("jax-cuda12-plugin", "jax-cuda13-plugin"), "tpu": ("libtpu",)}
# Environment variables that matter, and whose values are harmless.
SHOWN = (
    "CUDA_VISIBLE_DEVICES", "GLIBC_TUNABLES", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE",
    "JAX_COMPILATION_CACHE_DIR", "JAX_DISABLE_JIT", "JAX_ENABLE_X64", "JAX_PLATFORMS",
    "JAX_TRACEBACK_FILTERING", "JAXCONV_CLOUD", "JAXCONV_WEIGHTS", "LANG", "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS", "PYTHONPATH", "PYTHONUTF8", "TFDS_DATA_DIR", "TMPDIR", "TORCH_HOME",
    "TPU_VISIBLE_CHIPS", "XDG_CACHE_HOME", "XLA_FLAGS", "XLA_PYTHON_CLIENT_ALLOCATOR",
    "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE",
)  # fmt: skip
_SECRET = re.compile("TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
# Seconds that one import or the search for devices may take.
PATIENCE = 120.0
_OK = "ok"


class Line(NamedTuple):
    """A row of the page; `problem` says what is wrong, if anything is, and what to do."""

    name: str
    value: str
    problem: str = ""


def add(commands: Any) -> None:
    """Add doctor."""
    parser = commands.add_parser(
        "doctor",
        help="show versions, devices, caches and what is missing, to paste into a bug report",
        description="Shows versions, devices, decoders, caches, free space and what is missing, "
        "without secrets. The exit code is 1 if something is broken.",
    )
    parser.set_defaults(run=lambda args, overrides: show())


def main(arguments: Sequence[str]) -> int:
    """The command with its arguments, of which there are none but --help."""
    parser = argparse.ArgumentParser(prog="jaxconv")
    add(parser.add_subparsers(metavar="COMMAND"))
    args = parser.parse_args(["doctor", *arguments])
    return args.run(args, [])


def show() -> int:
    """Print the page; the exit code: 1 if something is broken."""
    found = sections()
    lines = [line for _, lines in found for line in lines]
    width = max(columns(line.name) for line in lines) + 2
    for title, of_section in found:
        print(title)
        for line in of_section:
            print(without_secrets(f"  {padded(line.name, width)}{line.value}".rstrip()))
    problems = [f"{line.name}: {line.problem}" for line in lines if line.problem]
    print("problems" if problems else "no problem found")
    for problem in problems:
        print(without_secrets(f"  {problem}"))
    return 1 if problems else 0


def sections() -> list[tuple[str, list[Line]]]:
    """The titles and rows of the page."""
    wanted = dict.fromkeys(ALWAYS, "")
    wanted |= {m: extra for extra, modules in EXTRAS.items() for m in modules}
    there = [module for module in wanted if is_there(module)]
    tried = dict(try_all([*(f"import {module}" for module in there), "devices", "decoder"]))
    packages = [_package(module, tried.get(f"import {module}", "")) for module in wanted]
    return [
        ("jaxconv", _about()),
        ("packages", [line for line in packages if line.value]),
        ("devices", _devices(tried["devices"])),
        ("images", [_told("decoder", tried["decoder"])]),
        ("extras", [*map(_extra, EXTRAS), *_accelerators()]),
        ("caches", _caches()),
        ("free space", _space()),
        ("environment", _environment()),
    ]


def is_there(module: str) -> bool:
    """Whether a module is installed, working or not."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


# What is tried in the other process.


def try_all(tasks: Sequence[str], patience: float = PATIENCE) -> Iterator[tuple[str, str]]:
    """Try tasks in other processes; (task, `ok`, what it found, or `failed: ...`) of each.

    Args:
      tasks: `import MODULE`, `devices` or `decoder`.
      patience: seconds that one task may take.
    """
    left = [*tasks]
    while left:
        told = _in_another_process(left, patience)
        yield from zip(left, told, strict=False)
        left = left[len(told) :]


def _in_another_process(tasks: Sequence[str], patience: float) -> list[str]:
    """What was found of the first of the tasks, up to one at which the process died or hung."""
    # The GPU's memory may be taken, and is not needed.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    root = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(
        [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    command = [sys.executable, "-m", "jaxconv.doctor", *tasks]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
            env=environment,
        ) as process,
    ):
        told: list[str] = []
        assert process.stdout is not None
        while len(told) < len(tasks):
            timer = threading.Timer(patience, process.kill)
            timer.start()
            line = process.stdout.readline()
            late = not timer.is_alive()
            timer.cancel()
            if not line:
                process.wait()
                errors.seek(0)
                why = f"took more than {patience:.0f} s" if late else _ended(process.returncode)
                last = short(([*filter(str.strip, errors)] or [""])[-1], 200)
                told.append(f"failed: {why}{f': {last}' if last else ''}")
                break
            told.append(json.loads(line))
        process.kill()
    return told


def _ended(code: int) -> str:
    return f"ended the process by signal {-code}" if code < 0 else f"ended the process with {code}"


def _answer(tasks: Sequence[str]) -> None:
    """In the other process: try each task, and print a line of JSON about each."""
    # What the libraries print does not get between the lines.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for task in tasks:
        try:
            text = _TASKS[task]() if task in _TASKS else _import(task.removeprefix("import "))
        except BaseException as error:  # also SystemExit: a library may do anything
            text = f"failed: {short(f'{type(error).__name__}: {error}', 300)}"
        print(json.dumps(text), file=out, flush=True)


def _import(module: str) -> str:
    # `import orbax` alone imports nothing.
    importlib.import_module("orbax.checkpoint" if module == "orbax" else module)
    return _OK


def _find_devices() -> str:
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    counted = [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{jax.default_backend()}: {', '.join(counted)}{processes}"


def _find_decoder() -> str:
    from jaxconv.data.decode import choose_decoder, decoder_versions

    name = choose_decoder("auto")
    return f"{name} ({decoder_versions(name)})"


_TASKS: dict[str, Callable[[], str]] = {"devices": _find_devices, "decoder": _find_decoder}


# The sections.


def _told(name: str, text: str) -> Line:
    failed = text.startswith("failed: ")
    return Line(name, text, text.removeprefix("failed: ") if failed else "")


def _about() -> list[Line]:
    root = Path(__file__).resolve().parents[1]
    checkout = " (a checkout)" if (root / "setup.cfg").is_file() else ""
    try:
        installed = importlib.metadata.version("jaxconv")
    except importlib.metadata.PackageNotFoundError:
        installed = __version__
    other = ""
    if installed != __version__:
        other = f"pip knows version {installed}: install it again"
    libc = " ".join(filter(None, platform.libc_ver()))
    memory = ""
    with contextlib.suppress(ValueError, OSError, AttributeError):  # not on every system
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        memory = f", {human_bytes(size)} of memory"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Line("version", f"{__version__} in {root}{checkout}", other),
        Line("python", f"{platform.python_version()} in {sys.prefix}"),
        Line("system", f"{platform.platform()}{f', {libc}' if libc else ''}"),
        Line("processor", f"{platform.machine()}, {cores} cores{memory}"),
    ]


@functools.cache
def _distributions() -> dict[str, list[str]]:
    with contextlib.suppress(Exception):  # one damaged package must not hide the others
        return {m: sorted({*d}) for m, d in importlib.metadata.packages_distributions().items()}
    return {}


def _package(module: str, found: str) -> Line:
    """The version of an installed module, and whether it can be imported; empty if not there."""
    if not found:
        missing = "is not installed: pip install jaxconv" if module in ALWAYS else ""
        return Line(module, "missing" if missing else "", missing)
    names = [name for name in _distributions().get(module, []) if _version(name)]
    versions = ", ".join(f"{name} {_version(name)}" for name in names) or "version unknown"
    if found != _OK:
        why = found.removeprefix("failed: ")
        return Line(module, f"{versions}, cannot be imported", f"cannot be imported: {why}")
    old = [needed for name in names if (needed := _too_old(name))]
    return Line(module, versions, "; ".join(old))


def _version(package: str) -> str:
    with contextlib.suppress(Exception):  # the package's own files are damaged
        return importlib.metadata.version(package) or ""
    return ""


def _too_old(package: str) -> str:
    """Whether a package is older than jaxconv's metadata wants it; empty if not."""
    least = _least_versions().get(package.lower().replace("_", "-"), "")
    have = _version(package)
    if not least or _numbers(have) >= _numbers(least):
        return ""
    return f"{have} is older than {least}: pip install --upgrade '{package}>={least}'"


@functools.cache
def _least_versions() -> dict[str, str]:
    """The smallest version of each package in jaxconv's metadata."""
    try:
        wanted = importlib.metadata.requires("jaxconv") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = [re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([\d.]+)", text) for text in wanted]
    return {match[1].lower().replace("_", "-"): match[2] for match in found if match}


def _numbers(version: str) -> list[int]:
    found = re.match(r"[\d.]+", version)
    return [int(part) for part in found[0].split(".") if part] if found else []


def _devices(found: str) -> list[Line]:
    line = _told("JAX finds", found)
    if line.problem and os.environ.get("JAX_PLATFORMS"):
        line = line._replace(
            problem=f"{line.problem}; JAX_PLATFORMS={os.environ['JAX_PLATFORMS']} is set"
        )
    return [line]


def _extra(extra: str) -> Line:
    missing = [module for module in EXTRAS[extra] if not is_there(module)]
    if not missing:
        return Line(extra, "complete")
    return Line(
        extra,
        f"without {', '.join(missing)}; gives {GIVES[extra]}: pip install 'jaxconv[{extra}]'",
    )


def _accelerators() -> list[Line]:
    found = {
        extra: [f"{name} {_version(name)}" for name in names if _version(name)]
        for extra, names in ACCELERATORS.items()
    }
    return [
        Line(extra, ", ".join(names) or f"not installed: pip install 'jaxconv[{extra}]'")
        for extra, names in found.items()
    ]


def _caches() -> list[Line]:
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR") or cache_folder("compiled")
    hub = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub"
    torch = Path(os.environ.get("TORCH_HOME") or "~/.cache/torch") / "hub" / "checkpoints"
    places = {
        "compiled programs": compiled,
        "weights": os.environ.get("JAXCONV_WEIGHTS") or cache_folder("weights"),
        "copies of buckets": os.environ.get("JAXCONV_CLOUD") or cache_folder("cloud"),
        "Hugging Face hub": os.environ.get("HF_HUB_CACHE") or hub,
        "torch hub": torch,
        "TFDS": os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets",
    }
    return [_cache(name, place) for name, place in places.items()]


def _cache(name: str, place: str | Path) -> Line:
    try:
        folder = Path(place).expanduser()
    except RuntimeError:
        return Line(name, f"{place}: the home folder is unknown; set HOME")
    if not folder.is_dir():
        return Line(name, f"{folder}: not there yet")
    files, size = _size_of(folder)
    writable = "" if os.access(folder, os.W_OK) else ", cannot be written"
    return Line(name, f"{folder}: {human_bytes(size)} in {files:,} files{writable}")


def _size_of(folder: Path) -> tuple[int, int]:
    """Number and bytes of the files below a folder; links count nothing."""
    files = size = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # deleted meanwhile
                found = os.lstat(os.path.join(where, name))
                files, size = files + 1, size + found.st_size
    return files, size


def _space() -> list[Line]:
    places = {"this folder": ".", "temporary files": tempfile.gettempdir(), "home": "~"}
    lines = []
    for name, place in places.items():
        try:
            folder = Path(place).expanduser().absolute()
            free = shutil.disk_usage(folder).free
        except (OSError, RuntimeError) as error:
            lines.append(Line(name, f"unknown ({error})"))
            continue
        little = "less than 100 MB are free" if free < 1e8 else ""
        lines.append(Line(name, f"{human_bytes(free)} in {folder}", little))
    return lines


def _environment() -> list[Line]:
    lines = [Line(name, os.environ[name]) for name in SHOWN if name in os.environ]
    secrets = [name for name in ("HF_TOKEN", "WANDB_API_KEY") if os.environ.get(name)]
    lines += [Line(name, "set (not shown)") for name in secrets]
    return lines or [Line("nothing", "none of the variables that matter is set")]


def without_secrets(text: str) -> str:
    """The text with `~` for the home folder, and without passwords, tokens and keys."""
    text = re.sub(r"(\w+://)[^/\s@]+@", r"\1...@", text)
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, "...")
    homes = {os.environ.get("HOME", ""), os.path.expanduser("~")} - {"", "/", "~"}
    for home in sorted(homes, key=len, reverse=True):
        text = re.sub(re.escape(home.rstrip("/")) + r"(?![\w.-])", "~", text)
    return text


if __name__ == "__main__":
    _answer(sys.argv[1:])
