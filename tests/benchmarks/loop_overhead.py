"""The overhead of the training loop over a bare `for` loop that calls the same jitted step.

    python tests/benchmarks/loop_overhead.py

The training loop shows progress and writes metrics.jsonl and TensorBoard files. The bare loop has
its batches on the device beforehand and reads no result before the last. The batch size is chosen
so that a step takes about 5 ms on this machine. Then two processes start the same config with an
empty and with a filled compilation cache.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
from machine import interleaved, machine, ratios

from jaxconv.config import default_config, set_key
from jaxconv.data.interface import describe
from jaxconv.data.loading import make_loader
from jaxconv.data.sources import open_source
from jaxconv.train.build import build
from jaxconv.train.checkpoint import Checkpoints
from jaxconv.train.loop import Outputs, Run
from jaxconv.train.parallel import make_parallel
from jaxconv.train.processes import Preemption
from jaxconv.train.watch import MetricsLog, Profiler, Progress

ROOT = Path(__file__).resolve().parents[2]
STEPS, REPEATS, GOAL = 600, 15, 5e-3


def config_of(batch_size):
    config = default_config()
    for key, text in {
        "steps": STEPS, "batch_size": batch_size,
        "model.kwargs.filters": "8,16", "augment.flip": "True", "augment.pad_crop": "2",
        "data.xo.train_examples": "2000", "data.xo.test_examples": "10", "eval.batch_size": "10",
    }.items():  # fmt: skip
        set_key(config, key, str(text))
    # Evaluations and checkpoints are not compared: they run only at the last step, after the clock
    # has stopped.
    config.eval.every = config.checkpoint.every = STEPS
    return config


class Clocked:
    """The compiled step, which records when its first and its last call have finished."""

    def __init__(self, step):
        self.step, self.calls, self.start, self.end = step, 0, 0.0, 0.0

    def __call__(self, *args):
        state, metrics = self.step(*args)
        self.calls += 1
        if self.calls in (1, STEPS):
            metrics.block_until_ready()
            self.start, self.end = (
                (time.perf_counter(), 0.0) if self.calls == 1 else (self.start, time.perf_counter())
            )
        return state, metrics

    def seconds(self):
        return (self.end - self.start) / (STEPS - 1)


def loops(batch_size):
    """{name: function that runs one loop and returns seconds per step}."""
    config = config_of(batch_size)
    parallel = make_parallel("jit", jax.devices()[:1])
    train, test = (open_source(config.data, split) for split in ("train", "test"))
    built = build(config, describe(train), len(train), None)
    run = Run(
        config,
        Path(),
        parallel,
        built,
        *(make_loader(source, parallel, config.data) for source in (train, test)),
    )
    step, data, key = run.calls[1], run.train_data.data, run.key()
    batches = list(run.train_data.train_batches(run.order, 0, STEPS))

    def bare():
        clocked, state = Clocked(step), run.first_state()
        for batch in batches:
            state, _ = clocked(state, data, batch, key)
        return clocked.seconds()

    def ours():
        run.calls[1] = Clocked(step)
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            logs = MetricsLog(folder, 0, True), Progress(STEPS, 0, batch_size, True)
            outputs = Outputs(Checkpoints(folder / "c"), *logs, Profiler(folder, ""), Preemption(1))
            run._steps(run.first_state(), {"pending": [], "best": {}, "gone": []}, 0, outputs)
            outputs.checkpoints.close()
            outputs.metrics_log.close()
        return run.calls[1].seconds()

    return {"bare": bare, "jaxconv": ours}


def second_start():
    """Seconds until the first step has run, for the first and second start of the same config."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for number in (1, 2):
            flags = [
                "--config=experiments/xo.py",
                f"--workdir={folder}/{number}",
                "--config.epochs=0.5",
            ]
            environment = os.environ | {"XDG_CACHE_HOME": folder, "JAX_COMPILATION_CACHE_DIR": ""}
            process = subprocess.run(
                [sys.executable, "-m", "jaxconv", "train", *flags],
                env=environment,
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            seconds.append(float(process.stderr.split("first step after ")[1].split()[0]))
    return seconds


def main():
    batch_size = 8
    while (seconds := loops(batch_size)["bare"]()) < GOAL:
        batch_size = max(batch_size + 1, round(batch_size * GOAL / seconds))
    results = interleaved(loops(batch_size), REPEATS)
    cold, warm = second_start()
    print(machine("flax", "optax", "tensorboardX"))
    print(
        f"step {1e3 * statistics.median(results['bare']):.2f} ms ({batch_size} images), {STEPS} "
        "steps per loop, log every 50"
    )
    print(f"jaxconv's loop over the bare loop: {ratios(results, 'jaxconv', 'bare')}")
    print(f"first step after {cold:.1f} s, on the second start after {warm:.1f} s")
    print(
        json.dumps(
            {
                "ratio": statistics.median(
                    a / b for a, b in zip(results["jaxconv"], results["bare"], strict=True)
                )
            }
        )
    )


if __name__ == "__main__":
    main()
