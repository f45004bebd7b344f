"""CIFAR-10 to the end: airbench94's own program on the CPU, and experiments/cifar10_fast.py.

    git clone https://github.com/KellerJordan/cifar10-airbench
    python tests/benchmarks/cifar10.py --airbench cifar10-airbench --data DIR --seeds 0,1,2

DIR holds train/<class>/*.jpg and test/<class>/*.jpg. The program is run as it stands, once for each
seed and in turn with jaxconv's, but for what follows: float32 instead of float16, the CPU instead
of CUDA, and the images of DIR. Two figures are given for each: the steps and the last evaluation,
by six views of each image, as the program counts its time; and the whole command, with start,
reading, compilation, and an evaluation after each epoch. Both have GLIBC_TUNABLES of launch/*.sh.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import machine

ROOT = Path(__file__).resolve().parents[2]
# What is changed in the program's text: from, to. Each must occur.
CHANGES = (
    (".half()", ".float()"),
    (".cuda()", ""),
    ("map_location=torch.device(gpu)", "map_location='cpu'"),
    ("range(25)", "range(1)"),
)
# What the program uses of torchvision needs no compiled operation: a build for CUDA beside a torch
# without can be imported once two of them are defined.
START = """
import sys, time, torch
seed, program = int(sys.argv[1]), sys.argv[2]
try:
    import torchvision
except RuntimeError:
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
class Event:
    def __init__(self, enable_timing): pass
    def record(self): self.time = time.perf_counter()
    def elapsed_time(self, other): return 1000 * (other.time - self.time)
torch.cuda.Event, torch.cuda.synchronize = Event, lambda: None
torch.manual_seed(seed)
sys.argv = [program]
exec(compile(open(program).read(), program, "exec"), {"__name__": "__main__"})
"""


def prepare(airbench, data, folder):
    """The changed program, and the images as it reads them, in a folder."""
    import torch
    from PIL import Image

    text = (Path(airbench) / "legacy" / "airbench94.py").read_text()
    for old, new in CHANGES:
        if old not in text:
            raise SystemExit(f"legacy/airbench94.py has no {old!r}: is it another version?")
        text = text.replace(old, new)
    (folder / "airbench94.py").write_text(text)
    (folder / "cifar10").mkdir()
    for split in ("train", "test"):
        classes = sorted(place.name for place in (Path(data) / split).iterdir())
        files = [
            (file, number)
            for number, name in enumerate(classes)
            for file in sorted((Path(data) / split / name).iterdir())
        ]
        images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file, _ in files])
        labels = torch.tensor([number for _, number in files])
        stored = {"images": torch.tensor(images), "labels": labels, "classes": classes}
        torch.save(stored, folder / "cifar10" / f"{split}.pt")


def run(command, folder):
    """The output of a command, and its seconds."""
    tunables = os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    environment = os.environ | {"GLIBC_TUNABLES": tunables}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{done.stderr[-2000:]}")
    return done.stdout, time.perf_counter() - start


def theirs(seed, folder):
    """(error %, seconds of steps and last evaluation, seconds of the command)."""
    output, whole = run([sys.executable, "-c", START, str(seed), "airbench94.py"], folder)
    row = next(line for line in output.splitlines() if "eval" in line and "|" in line)
    numbers = re.findall(r"\d+\.\d+", row)
    return 100 * (1 - float(numbers[-2])), float(numbers[-1]), whole


def ours(seed, data, folder, argument):
    """The same of jaxconv."""
    workdir = folder / f"seed{seed}"
    train = [sys.executable, "-m", "jaxconv", "train", f"--workdir={workdir}"]
    train += [f"--config={ROOT / 'experiments' / 'cifar10_fast.py'}{argument}"]
    train += [f"--config.data.source=folder:{Path(data).resolve()}", f"--config.seed={seed}"]
    _, whole = run(train, ROOT)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    batch_size = json.loads((workdir / "config.json").read_text())["batch_size"]
    steps, before = 0.0, 0
    for row in rows:
        if "images_per_second" in row:
            steps += batch_size * (row["step"] - before) / row["images_per_second"]
            before = row["step"]
    # Twice, the second time without most of the compilation: the difference to a single view, times
    # 6/5, is the evaluation itself.
    evaluate = [sys.executable, "-m", "jaxconv", "evaluate", f"--workdir={workdir}"]
    result, first = run([*evaluate, "--views=6-crop"], ROOT)
    seconds = {view: run([*evaluate, f"--views={view}"], ROOT)[1] for view in ("center", "6-crop")}
    views = 6 / 5 * (seconds["6-crop"] - seconds["center"])
    error = 100 * (1 - json.loads(result.splitlines()[-1])["top1"])
    return error, steps + views, whole + first


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--airbench", default="", help="clone of the repository; without it, skip")
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--argument", default="", help="of the experiment, such as :sgd")
    options = parser.parse_args()
    print(machine(*(("torch",) if options.airbench else ())))
    found = {"airbench94": [], "jaxconv": []}
    print("| | seed | error % | steps and last evaluation, s | whole command, s |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.airbench:
            prepare(options.airbench, options.data, folder)
        for seed in map(int, options.seeds.split(",")):
            runs = {"jaxconv": lambda seed=seed: ours(seed, options.data, folder, options.argument)}
            if options.airbench:
                runs = {"airbench94": lambda seed=seed: theirs(seed, folder)} | runs
            for who, measure in runs.items():
                found[who].append(measure())
                error, steps, whole = found[who][-1]
                print(f"| {who} | {seed} | {error:.2f} | {steps:.0f} | {whole:.0f} |", flush=True)
    for who, rows in found.items():
        if rows:
            errors, steps, whole = zip(*rows, strict=True)
            spread = statistics.stdev(errors) if len(errors) > 1 else float("nan")
            print(
                f"{who}: error {statistics.mean(errors):.2f} % (deviation {spread:.2f}), "
                f"{statistics.median(steps):.0f} s, whole {statistics.median(whole):.0f} s"
            )
    if options.airbench:
        for n, what in ((1, "steps and last evaluation"), (2, "whole command")):
            each = [one[n] / two[n] for one, two in zip(*reversed(found.values()), strict=True)]
            print(f"{what}: jaxconv / airbench94 {statistics.median(each):.2f}")


if __name__ == "__main__":
    main()
