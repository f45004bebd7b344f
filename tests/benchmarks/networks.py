"""Inference and training steps of whole networks: jaxconv, PyTorch, and Flax's ImageNet example.

    python tests/benchmarks/networks.py                 # all networks, float32, batch 8
    python tests/benchmarks/networks.py --networks resnet50 --batch 128 \\
        --dtypes float32,bfloat16

Needs only jax, flax, optax and torch. A training step is forward, backward and an update by SGD
with momentum, on one batch that is already on the device. PyTorch runs eagerly and with
torch.compile, with channels_last and, for bfloat16, autocast. Each contender is a process of its
own, and they take turns; a ratio is of two neighboring turns. On a CPU, jaxconv and Flax's example
have huge pages, as with launch/*.sh; `eager_huge` is PyTorch with them. The peak memory is that of
the device or, on a CPU, of the process, of which some 450 MB are imports. The first line gives the
machine's load: other processes slow down PyTorch most, because its threads wait for each other.

`before` is jaxconv of another checkout: `--before=FOLDER`.

On the accelerators of `ROOFS` a column gives jaxconv's share of the roofline: the time that the
step would take at the peak of the matrix units or of the memory, whichever is longer, over its
time. Operations are those that XLA counts in the step before it optimizes, bytes those that the
compiled step reads and writes, each operation by itself.
"""

import argparse
import functools
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

# Both frameworks run in one process, so JAX must not preallocate all device memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from machine import interleaved, machine
from torch_networks import PARAMETERS, SEGMENTATION, build

import jaxconv
from jaxconv.compiling import hand_back_memory
from jaxconv.models.resnet import UNITS
from jaxconv.tasks.segmentation.losses import pixel_cross_entropy

CONTENDERS = ("jaxconv", "eager", "eager_huge", "compile", "flax", "before")
# Device, dtype -> peak operations/s of the matrix units (dense) and bytes/s of the memory, from
# NVIDIA's data sheets of the SXM modules.
ROOFS = {
    ("NVIDIA H100", "bfloat16"): (989e12, 3.35e12),
    ("NVIDIA H200", "bfloat16"): (989e12, 4.8e12),
}
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
SAMPLE = 1.5  # seconds that a turn should last at least, after a step that is not measured


class FlaxResNet(nn.Module):
    """The ResNet of Flax's ImageNet example.

    SAME padding, BatchNorm with momentum 0.9, and the last scale of a block initialized to zero.
    """

    units: tuple[int, ...]
    bottleneck: bool
    classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train):
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        x = nn.relu(norm()(conv(64, (7, 7), (2, 2), padding=[(3, 3), (3, 3)])(x)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, units in enumerate(self.units):
            filters = 64 * 2**stage
            for unit in range(units):
                strides = (2, 2) if stage and not unit else (1, 1)
                sizes = (1, 3, 1) if self.bottleneck else (3, 3)
                y, expansion = x, 4 if self.bottleneck else 1
                for n, size in enumerate(sizes):
                    last = n == len(sizes) - 1
                    strided = n == (1 if self.bottleneck else 0)
                    y = conv(
                        filters * (expansion if last else 1),
                        (size, size),
                        strides if strided else (1, 1),
                    )(y)
                    y = (
                        norm(scale_init=nn.initializers.zeros_init())(y)
                        if last
                        else nn.relu(norm()(y))
                    )
                if x.shape != y.shape:
                    x = norm()(conv(filters * expansion, (1, 1), strides)(x))
                x = nn.relu(x + y)
        return jnp.asarray(
            nn.Dense(self.classes, dtype=self.dtype)(jnp.mean(x, (1, 2))), jnp.float32
        )


def jax_run(contender, name, settings):
    """(function that starts one step, function that waits for it, seconds to compile)."""
    classes, dtype = settings.classes, jnp.dtype(settings.dtype)
    overrides = {"auxiliary": False} if name == "googlenet_torchvision" else {}
    options = {}
    if contender != "flax":
        model = jaxconv.create_model(name, classes, dtype, **overrides)
        if contender == "jaxconv":
            options = jaxconv.compiler_options()
    else:
        depth = int(name.removeprefix("resnet"))
        model = FlaxResNet(UNITS[depth], depth >= 50, classes, dtype)
    images = jax.device_put(jnp.asarray(settings.images))
    batch = {"image": images, "label": jax.device_put(jnp.asarray(settings.labels, jnp.int32))}
    objective = None
    if name in SEGMENTATION:
        objective = lambda logits, batch: (pixel_cross_entropy(logits, batch["label"]), {})  # noqa: E731
    optimizer, key = optax.sgd(1e-3, momentum=0.9), jax.random.key(0)
    state = jax.jit(lambda key: jaxconv.create_state(model, optimizer, key, images[:1]))(key)
    start = time.perf_counter()
    if settings.mode == "train":
        step = jaxconv.make_train_step(model, optimizer, objective=objective)
        lowered = jax.jit(step, donate_argnums=0).lower(state, batch, key)
        compiled = lowered.compile(options)
        held = [state]
        hand_back_memory()  # as the commands do

        def run():
            held[0], metrics = compiled(held[0], batch, key)
            return metrics["loss"]
    else:
        variables = {"params": state.params, **state.model_state}
        forward = jax.jit(lambda v, x: model.apply(v, x, train=False))
        lowered = forward.lower(variables, images)
        compiled = lowered.compile(options)

        def run():
            return compiled(variables, images)

    seconds = time.perf_counter() - start
    run.work = lambda: (
        lowered.cost_analysis()["flops"],
        compiled.cost_analysis()["bytes accessed"],
    )
    return run, jax.block_until_ready, seconds


def torch_run(contender, name, settings):
    """The same for PyTorch; RuntimeError if torch.compile does not work."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = (
        build(name, settings.classes)
        .to(device, memory_format=torch.channels_last)
        .train(settings.mode == "train")
    )
    images = (
        torch.from_numpy(settings.images)
        .permute(0, 3, 1, 2)
        .to(device)
        .contiguous(memory_format=torch.channels_last)
    )
    labels, cross_entropy = (
        torch.from_numpy(settings.labels).to(device),
        torch.nn.CrossEntropyLoss(),
    )

    def loss_of(outputs):
        if not isinstance(outputs, dict):
            return cross_entropy(outputs, labels)
        return cross_entropy(outputs["out"], labels) + 0.5 * cross_entropy(outputs["aux"], labels)

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    network = torch.compile(model) if contender == "compile" else model
    half = settings.dtype == "bfloat16"

    def run():
        if settings.mode == "forward":
            with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=half):
                return network(images)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = loss_of(network(images))
        loss.backward()
        optimizer.step()
        return loss

    def wait(_):
        if device == "cuda":
            torch.cuda.synchronize()

    start = time.perf_counter()
    wait(run())
    return run, wait, time.perf_counter() - start


def prepare(contender, name, settings):
    """A contender ready to be measured: see `jax_run`."""
    of_torch = contender in ("eager", "eager_huge", "compile")
    return (torch_run if of_torch else jax_run)(contender, name, settings)


def serve(contender, prepared, dtype="float32"):
    """The body of a contender's process: prints what each line of the standard input asks for."""
    run, wait, seconds = prepared
    wait(run())
    print(seconds, flush=True)
    for line in sys.stdin:
        if line.strip() == "peak":
            print(peak(contender), flush=True)
            continue
        if line.strip() == "roof":
            print(roof(run, dtype), flush=True)
            continue
        wait(run())  # memory that was idle may have to come back first
        start = time.perf_counter()
        for _ in range(int(line)):
            result = run()
        wait(result)
        print((time.perf_counter() - start) / int(line), flush=True)


def peak(contender):
    """Peak memory in MB."""
    if jax.default_backend() == "cpu" and not torch.cuda.is_available():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    if contender in ("jaxconv", "before", "flax"):
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20
    return torch.cuda.max_memory_allocated() / 2**20


def roof(run, dtype):
    """Seconds of a step at the peak of operations or bytes; not a number for an unknown device."""
    kind = jax.devices()[0].device_kind
    peaks = next((roof for (name, of), roof in ROOFS.items() if name in kind and of == dtype), None)
    if peaks is None:
        return float("nan")
    return max(amount / peak for amount, peak in zip(run.work(), peaks, strict=True))


class Contender:
    """A contender's process: a script with `--only` and these arguments, which calls `serve`."""

    def __init__(self, contender, arguments, before="", script=__file__):
        words = (str(part) for pair in arguments.items() for part in pair)
        environment = dict(os.environ)
        if contender not in ("eager", "compile", "before"):
            environment |= HUGE_PAGES
        if contender == "before":
            environment["PYTHONPATH"] = before
        self.process = subprocess.Popen(
            [sys.executable, script, f"--only={contender}", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.compiled = self._answer()
        if self.compiled is not None:
            self.steps = max(1, round(SAMPLE / self.ask(1)))

    def _answer(self):
        line = self.process.stdout.readline()
        return float(line) if line else None  # ended, such as torch.compile without a compiler

    def ask(self, what):
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._answer()

    def sample(self):
        return self.ask(self.steps)

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def row(name, settings, contenders, repeats, before):
    """One line of the table."""
    wanted = [
        contender
        for contender in contenders
        if contender != "flax" or name in ("resnet18", "resnet50", "resnet152")
    ]
    arguments = {
        "--networks": name,
        "--dtypes": settings.dtype,
        "--modes": settings.mode,
        "--batch": settings.batch,
        "--size": settings.size,
    }
    processes = {contender: Contender(contender, arguments, before) for contender in wanted}
    ready = {who: process for who, process in processes.items() if process.compiled is not None}
    results = interleaved({who: process.sample for who, process in ready.items()}, repeats)
    cells = [
        name,
        settings.mode,
        settings.dtype,
        str(settings.batch),
        f"{settings.batch / statistics.median(results['jaxconv']):.1f}",
    ]
    for rival in contenders[1:]:
        if rival not in results:
            cells.append("not available" if rival in processes else "-")
            continue
        pairs = [a / b for a, b in zip(results["jaxconv"], results[rival], strict=True)]
        best = min(results["jaxconv"]) / min(results[rival])
        cells.append(
            f"{statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f}; of the best "
            f"turns {best:.2f})"
        )
    share = ready["jaxconv"].ask("roof") / min(results["jaxconv"])
    cells.append("-" if math.isnan(share) else f"{share:.2f}")
    for value in (lambda process: process.compiled, lambda process: process.ask("peak")):
        cells.append(", ".join(f"{value(ready[w]):.0f}" if w in ready else "-" for w in contenders))
    for process in processes.values():
        process.end()
    return "| " + " | ".join(cells) + " |"


def settings_of(arguments, name, dtype, mode):
    height, width, channels = jaxconv.model_info(name).input_size
    size, classes = arguments.size or height, 10 if name == "lenet5" else 1000
    classes = 21 if name in SEGMENTATION else classes
    shape = (arguments.batch, size, arguments.size or width)
    random, batch = np.random.default_rng(0), arguments.batch
    return argparse.Namespace(
        batch=batch,
        size=arguments.size,
        dtype=dtype,
        mode=mode,
        classes=classes,
        images=random.normal(size=(*shape, channels)).astype(np.float32),
        labels=random.integers(0, classes, shape if name in SEGMENTATION else batch),
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    apart = ("resnext50_32x4d", *SEGMENTATION)
    default = ",".join(name for name in PARAMETERS if name not in apart)
    parser.add_argument(
        "--networks",
        default=default,
        help=f"any of {', '.join(PARAMETERS)}; by default all but {', '.join(apart)}",
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--size", type=int, default=0, help="height and width of the images; 0: the network's own"
    )
    parser.add_argument("--dtypes", default="float32", help="float32, bfloat16 or both")
    parser.add_argument("--modes", default="forward,train")
    parser.add_argument(
        "--contenders",
        default="eager,eager_huge,compile,flax",
        help=f"any of {', '.join(CONTENDERS)}; jaxconv is always included",
    )
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contender")
    parser.add_argument("--before", default="", help="folder of another checkout of jaxconv")
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names, dtypes, modes, contenders = (
        getattr(arguments, key).split(",") for key in ("networks", "dtypes", "modes", "contenders")
    )
    for given, known in (
        (names, PARAMETERS),
        (dtypes, ("float32", "bfloat16")),
        (modes, ("forward", "train")),
        (contenders, CONTENDERS),
    ):
        for wrong in set(given) - set(known):
            parser.error(f"{wrong!r} is not one of {', '.join(known)}")
    if arguments.only:
        settings = settings_of(arguments, names[0], dtypes[0], modes[0])
        serve(arguments.only, prepare(arguments.only, names[0], settings), dtypes[0])
        return
    if ("before" in contenders) != bool(arguments.before):
        parser.error("`before` needs --before=FOLDER, and --before needs `before`")
    contenders = ["jaxconv", *(contender for contender in contenders if contender != "jaxconv")]
    print(
        machine("flax", "optax", "torch"),
        f"{torch.get_num_threads()} threads of PyTorch; load {os.getloadavg()[0]:.1f}",
        sep="; ",
    )
    rivals = {
        "eager": "time / torch eager",
        "eager_huge": "time / torch eager with huge pages",
        "compile": "time / torch.compile",
        "flax": "time / Flax's example",
        "before": "time / jaxconv before",
    }
    heads = [
        "network",
        "mode",
        "dtype",
        "batch",
        "images/s",
        *(rivals[c] for c in contenders[1:]),
        "share of the roofline",
        f"seconds to compile: {', '.join(contenders)}",
        f"peak MB: {', '.join(contenders)}",
    ]
    print(
        f"| {' | '.join(heads)} |", "|".join(["", *["---"] * len(heads), ""]), sep="\n", flush=True
    )
    for name in names:
        for mode in modes:
            for dtype in dtypes:
                print(
                    row(
                        name,
                        settings_of(arguments, name, dtype, mode),
                        contenders,
                        arguments.repeats,
                        arguments.before,
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
