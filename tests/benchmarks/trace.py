"""The operations that take most of a training step, from a trace of the profiler.

    python tests/benchmarks/trace.py --network resnet50 --batch 8
    python tests/benchmarks/trace.py --network resnet50 --batch 256 --dtype bfloat16 --entries 5

The first table has single operations: milliseconds, how often each runs, its shape, and where in
the network it comes from. The second adds up those of one kind.
"""

import argparse
import collections
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from machine import machine

import jaxconv

STEPS = 3


def compiled_step(name, batch_size, dtype):
    """(compiled step, its arguments)."""
    overrides = {"auxiliary": False} if name.startswith("googlenet") else {}
    model = jaxconv.create_model(name, 1000, jnp.dtype(dtype), **overrides)
    shape = (batch_size, *jaxconv.model_info(name).input_size)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    batch = {"image": jnp.asarray(images), "label": jnp.zeros(batch_size, jnp.int32)}
    optimizer, key = optax.sgd(1e-3, momentum=0.9), jax.random.key(0)
    state = jax.jit(lambda key: jaxconv.create_state(model, optimizer, key, batch["image"][:1]))(
        key
    )
    step = jax.jit(jaxconv.make_train_step(model, optimizer), donate_argnums=0)
    return step.lower(state, batch, key).compile(jaxconv.compiler_options()), state, batch, key


def durations(folder):
    """{operation: (milliseconds of a step, calls of a step)} of a trace."""
    (file,) = Path(folder).rglob("*.xplane.pb")
    found = collections.defaultdict(lambda: [0.0, 0.0])
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name:
                    found[name][0] += event.duration_ns / 1e6 / STEPS
                    found[name][1] += 1 / STEPS
    return found


def origins(compiled):
    """{operation: (shape, place in the program)} of a compiled program's text."""
    row = re.compile(r'\s*(?:ROOT )?%?([\w.\-]+) = (\S+?)[{ ].*op_name="([^"]*)"')
    matches = map(row.match, compiled.as_text().splitlines())
    return {match[1]: (match[2], match[3]) for match in matches if match}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--entries", type=int, default=20, help="rows of each table")
    arguments = parser.parse_args()
    compiled, state, *rest = compiled_step(arguments.network, arguments.batch, arguments.dtype)
    state, metrics = compiled(state, *rest)
    jax.block_until_ready(metrics)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                state, metrics = compiled(state, *rest)
                jax.block_until_ready(metrics)
        found = durations(folder)
    known, total = origins(compiled), sum(milliseconds for milliseconds, _ in found.values())
    print(machine(), f"{arguments.network}, batch {arguments.batch}, {arguments.dtype}", sep="; ")
    print(f"{total:.1f} ms in operations of a step, summed over threads")
    kinds = collections.Counter()
    for name, (milliseconds, _) in found.items():
        kinds[re.sub(r"[\d.]+", "", name)] += milliseconds
    print("| ms | calls | operation | shape | from |", "|---|---|---|---|---|", sep="\n")
    for name, (milliseconds, calls) in sorted(found.items(), key=lambda item: -item[1][0])[
        : arguments.entries
    ]:
        shape, place = known.get(name, ("", ""))
        print(f"| {milliseconds:.2f} | {calls:.0f} | {name} | {shape} | {place[-90:]} |")
    print("| ms | kind |", "|---|---|", sep="\n")
    for kind, milliseconds in kinds.most_common(arguments.entries):
        print(f"| {milliseconds:.2f} | {kind} |")


if __name__ == "__main__":
    main()
