"""The time of one step of an ensemble, for each form, against its members one after another.

    python tests/benchmarks/ensemble.py                 # seven small networks on 32x32 images
    python tests/benchmarks/ensemble.py --members 3 --model resnet20_cifar --batch 64

"one after another" calls the compiled step of one network once for each member. The contenders
take turns; a ratio is of two neighboring turns.
"""

import argparse
import functools
import os
import statistics
import time

import numpy as np
from machine import interleaved, machine

from jaxconv.checks import FORMS
from jaxconv.config import default_config
from jaxconv.data.arrays import from_arrays
from jaxconv.data.interface import describe
from jaxconv.data.loading import make_loader
from jaxconv.train.build import build
from jaxconv.train.loop import Run
from jaxconv.train.parallel import make_parallel


def prepared(arguments, members, form):
    """A function that runs one step of all members and waits for the result."""
    config = default_config()
    config.ensemble.size, config.ensemble.batches, config.steps = members, "same", 10
    config.model.name, config.batch_size = arguments.model, arguments.batch
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (1024, arguments.size, arguments.size, 3), np.uint8)
    source = from_arrays(
        images, random.integers(0, 10, 1024).astype(np.int32), tuple(map(str, range(10)))
    )
    parallel = make_parallel("jit")
    run = Run(
        config,
        None,
        parallel,
        build(config, describe(source), 1024, None, form),
        *[make_loader(source, parallel, config.data)] * 2,
    )
    held, key = [parallel.to_steps(run.first_state())], run.key()
    batch = next(iter(run.train_data.train_batches(run.order, 0, 1)))

    def step():
        held[0], metrics = run.calls[1](held[0], run.train_data.data, batch, key)
        metrics.block_until_ready()

    step()
    return step


def seconds(step, times):
    start = time.perf_counter()
    for _ in range(times):
        step()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=7)
    parser.add_argument("--model", default="text:[(conv3-16 relu)*2 maxpool2]*2 fc64 relu fc")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    print(
        machine("flax"),
        f"load {os.getloadavg()[0]:.1f}; {arguments.members} x {arguments.model}, batch "
        f"{arguments.batch}",
        sep="; ",
    )
    contenders = {
        "one after another": functools.partial(
            seconds, prepared(arguments, 1, "unroll"), arguments.members
        )
    }
    contenders |= {
        form: functools.partial(seconds, prepared(arguments, arguments.members, form), 1)
        for form in FORMS
    }
    results = interleaved(contenders, arguments.repeats)
    print(
        "| form | ms per step of all members | time / one after another |",
        "|---|---|---|",
        sep="\n",
    )
    for name, turns in results.items():
        ratios = [a / b for a, b in zip(turns, results["one after another"], strict=True)]
        print(
            f"| {name} | {1000 * statistics.median(turns):.0f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


if __name__ == "__main__":
    main()
