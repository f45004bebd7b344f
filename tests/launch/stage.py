"""A stage for shell scripts: small programs play Slurm, gcloud, Python and jaxconv.

They record how they were called.
"""

import json
import os
import subprocess
import sys

from tests.conftest import ROOT

# Plays any program: records its arguments, prints the next of its answers and exits with the next
# of its codes (0 if none is left).
PLAYER = """#!{python} -S
import json, os, pathlib, subprocess, sys, time
stage = pathlib.Path({stage!r})
name = pathlib.Path(sys.argv[0]).name
with open(stage / "calls", "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")

def take(what, default):
    path = stage / (name + "." + what)
    lines = path.read_text().splitlines() if path.exists() else []
    path.write_text("\\n".join(lines[1:]))
    return lines[0] if lines else default

{plays}
print(take("says", ""), flush=True)
sys.exit(int(take("codes", "0")))
"""

# Python: -m venv creates a folder with players for python and jaxconv.
PYTHON = """
if sys.argv[1:2] == ["-c"]:
    sys.exit(0)
if sys.argv[1:3] == ["-m", "venv"]:
    place = pathlib.Path(sys.argv[3], "bin")
    place.mkdir(parents=True)
    for other in ("python", "jaxconv"):
        place.joinpath(other).write_text(pathlib.Path(stage, "bin", other).read_text())
        place.joinpath(other).chmod(0o755)
"""
# Slurm runs a copy of the script elsewhere, with its own variables.
SBATCH = """
number = next(i for i, argument in enumerate(sys.argv) if argument.endswith("slurm.sh"))
copy = stage / "slurm_script"
copy.write_text(pathlib.Path(sys.argv[number]).read_text())
for task in json.loads(take("tasks", "[1]")):
    job = {"SLURM_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": str(task), "retry_pause": "0"}
    command = ["bash", str(copy), *sys.argv[number + 1:]]
    code = subprocess.run(command, env=os.environ | job).returncode
    (stage / "job.codes").open("a").write(f"{code}\\n")
"""
SRUN = 'print("jaxconv: the loss became nan at step 7", file=sys.stderr, flush=True)'
# A TPU that exists from create to delete, and is preempted if the next prepared code of a training
# is 255.
GCLOUD = """
state, words = stage / "state", sys.argv[1:]
if "create" in words:
    state.write_text("READY")
if "delete" in words:
    state.unlink()
if "describe" in words:
    print("ACTIVE" if "queued-resources" in words else state.read_text() if state.exists() else "")
    sys.exit(0 if state.exists() else 1)
if "ssh" in words and any("--distributed=on" in word for word in words):
    time.sleep(float(take("naps", "0")))
    code = int(take("trainings", "0"))
    if code == 255:
        state.write_text("PREEMPTED")
    sys.exit(code)
sys.exit(0)
"""


class Stage:
    """A folder, first on PATH, with players of the programs that the scripts call."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "bin").mkdir()
        for name, plays in {
            "python": PYTHON, "jaxconv": "", "sbatch": SBATCH, "srun": SRUN,
            "squeue": "", "scontrol": "", "gcloud": GCLOUD,
        }.items():  # fmt: skip
            self.put(name, PLAYER.format(python=sys.executable, stage=str(folder), plays=plays))

    def put(self, name, text):
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def prepare(self, **answers):
        """`jaxconv__codes=[75, 0]`: the exit codes of successive calls of jaxconv."""
        for what, lines in answers.items():
            (self.folder / what.replace("__", ".")).write_text("\n".join(map(str, lines)))

    def settings(self):
        environment = os.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHON": str(self.folder / "bin" / "python"),
            "VENV": str(self.folder / "venv"),
            "TMPDIR": str(self.folder),
            "retry_pause": "0",
        }
        return {"env": environment, "cwd": ROOT, "text": True, "stdin": subprocess.DEVNULL}

    def run(self, script, *arguments):
        return subprocess.run(
            ["bash", ROOT / "launch" / script, *map(str, arguments)],
            **self.settings(),
            capture_output=True,
            timeout=60,
        )

    def calls(self, name):
        """The arguments of all calls of a program."""
        path = self.folder / "calls"
        calls = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )
        return [arguments for program, *arguments in calls if program == name]
