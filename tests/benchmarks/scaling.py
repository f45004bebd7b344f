"""Weak scaling: the time of a training step on n devices, relative to one device.

    python tests/benchmarks/scaling.py
    python tests/benchmarks/scaling.py --model resnet50 --size 224 --batch 64 --dtype bfloat16

It uses the accelerators of this machine, or 1, 2, 4 and 8 virtual devices of its CPU. Each device
has a batch of its own. On real devices a ratio of 1 is perfect scaling. Virtual devices share the
cores of one CPU, so n of them have n times the work; their time is divided by n times that of one
device, and 1 means no overhead. Two processes communicate over the loopback interface. Every
contender runs in separate processes, the contenders take turns, and a ratio is of two neighboring
turns.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS, TURNS = 10, 5


def work(arguments):
    """The process of a contender: train, and print the median seconds per step."""
    mode, devices, processes, number, port = arguments.work.split(",")
    if int(processes) > 1:
        from jaxconv.train.processes import join

        join(f"127.0.0.1:{port},{processes},{number}")
    import jax
    import numpy as np

    from jaxconv.config import default_config
    from jaxconv.data.arrays import from_arrays
    from jaxconv.data.interface import describe
    from jaxconv.data.loading import make_loader
    from jaxconv.train.build import build
    from jaxconv.train.loop import Run
    from jaxconv.train.parallel import make_parallel

    chosen = jax.devices()[: int(devices)]
    config = default_config()
    config.model.name, config.model.dtype, config.batch_size, config.steps = (
        arguments.model,
        arguments.dtype,
        arguments.batch * len(chosen),
        100,
    )
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (512, arguments.size, arguments.size, 3), np.uint8)
    source = from_arrays(
        images, random.integers(0, 10, 512).astype(np.int32), tuple(map(str, range(10)))
    )
    parallel = make_parallel(mode, chosen)
    built = build(config, describe(source), len(source), parallel.axis_name)
    run = Run(config, None, parallel, built, *[make_loader(source, parallel, config.data)] * 2)
    state, key, turns = parallel.to_steps(run.first_state()), run.key(), []
    batches = list(run.train_data.train_batches(run.order, 0, STEPS))
    for _ in range(TURNS + 1):
        start = time.perf_counter()
        for batch in batches:
            state, metrics = run.calls[1](state, run.train_data.data, batch, key)
        metrics.block_until_ready()
        turns.append((time.perf_counter() - start) / STEPS)
    print(
        json.dumps(
            {
                "seconds": statistics.median(turns[1:]),
                "device": chosen[0].device_kind,
                "platform": chosen[0].platform,
            }
        )
    )


def contend(arguments, mode, devices, processes, forced):
    """One turn of a contender; returns what its first process printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices // processes}" if forced else ""
    settings = [
        f"--{name}={getattr(arguments, name)}" for name in ("model", "size", "batch", "dtype")
    ]
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        "PYTHONPATH": str(ROOT),
    }
    running = [
        subprocess.Popen(
            [
                sys.executable,
                __file__,
                *settings,
                f"--work={mode},{devices},{processes},{number},{port}",
            ],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit(f"{mode} on {devices} devices in {processes} processes failed")
    return json.loads(said[0].splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet20_cifar")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=16, help="images of each device")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--modes", default="jit,pmap,fsdp")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments)
        return
    sys.path.insert(0, str(ROOT))
    import jax
    from machine import machine

    forced, real = jax.default_backend() == "cpu", len(jax.devices())
    counts = (
        (1, 2, 4, 8) if forced else [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n <= real]
    )
    contenders = [(mode, n, 1) for mode in arguments.modes.split(",") for n in counts]
    contenders += [(mode, 4, 2) for mode in arguments.modes.split(",")] if forced else []
    settings = (
        f"{arguments.model}, {arguments.size}x{arguments.size}, "
        f"{arguments.batch} images per device, {arguments.dtype}"
    )
    print(
        machine("flax"),
        f"load {os.getloadavg()[0]:.1f}",
        settings,
        f"{arguments.repeats} repeats",
        sep="; ",
    )
    turns = {contender: [] for contender in contenders}
    for _ in range(arguments.repeats):
        for contender in contenders:
            turns[contender].append(contend(arguments, *contender, forced)["seconds"])
    over = "n times one device" if forced else "one device"
    print(
        f"| mode | devices | processes | ms per step | time / {over} |",
        "|---|---|---|---|---|",
        sep="\n",
    )
    for (mode, devices, processes), seconds in turns.items():
        work_of = devices if forced else 1
        ratios = [a / (b * work_of) for a, b in zip(seconds, turns[mode, 1, 1], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"| {mode} | {devices} | {processes} | {1000 * statistics.median(seconds):.0f} | "
            f"{spread} |"
        )


if __name__ == "__main__":
    main()
