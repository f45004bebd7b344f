"""The overhead of the training loop over a bare `for` loop that calls the same jitted step.

    python tests/benchmarks/loop_overhead.py
    python tests/benchmarks/loop_overhead.py --steps_per_call 10

The training loop shows progress and writes metrics.jsonl and TensorBoard files. The bare loop has
its batches on the device beforehand and reads no result before the last. The batch size is chosen
so that a step takes about 5 ms on this machine. Then two processes start the same config with an
empty and with a filled compilation cache.
"""

import argparse
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
STEPS, GOAL = 600, 5e-3


def config_of(batch_size, steps_per_call):
    config = default_config()
    config.steps_per_call = steps_per_call
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
    """A compiled call of some steps, which records when the first and the last have finished."""

    def __init__(self, step, steps=1):
        self.step, self.steps, self.calls, self.start, self.end = step, steps, 0, 0.0, 0.0

    def __call__(self, *args):
        state, metrics = self.step(*args)
        self.calls += 1
        if self.calls * self.steps in (self.steps, STEPS):
            metrics.block_until_ready()
            self.start, self.end = (
                (time.perf_counter(), 0.0) if self.calls == 1 else (self.start, time.perf_counter())
            )
        return state, metrics

    def seconds(self):
        return (self.end - self.start) / (STEPS - self.steps)


def loops(batch_size, steps_per_call):
    """{name: function that runs one loop and returns seconds per step}.

    The bare loop takes one step a call.
    """
    config = config_of(batch_size, steps_per_call)
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
    step, calls = run.calls[1], run.calls[steps_per_call]
    data, key = run.train_data.data, run.key()
    batches = list(run.train_data.train_batches(run.order, 0, STEPS))

    def bare():
        clocked, state = Clocked(step), run.first_state()
        for batch in batches:
            state, _ = clocked(state, data, batch, key)
        return clocked.seconds()

    def ours():
        run.calls[steps_per_call] = clocked = Clocked(calls, steps_per_call)
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            logs = MetricsLog(folder, 0, True), Progress(STEPS, 0, batch_size, True)
            outputs = Outputs(Checkpoints(folder / "c"), *logs, Profiler(folder, ""), Preemption(1))
            run._steps(run.first_state(), {"pending": [], "best": {}, "gone": []}, 0, outputs)
            outputs.checkpoints.close()
            outputs.metrics_log.close()
        return clocked.seconds()

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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps_per_call", type=int, default=1, help="a divisor of 50")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    batch_size, each = 8, arguments.steps_per_call
    while (seconds := loops(batch_size, each)["bare"]()) < GOAL:
        batch_size = max(batch_size + 1, round(batch_size * GOAL / seconds))
    results = interleaved(loops(batch_size, each), arguments.repeats)
    cold, warm = second_start()
    print(machine("flax", "optax", "tensorboardX"))
    print(
        f"step {1e3 * statistics.median(results['bare']):.2f} ms ({batch_size} images), {STEPS} "
        f"steps per loop, {each} a call, log every 50"
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
