"""Single convolutions, forward and both gradients: XLA's, jaxconv's and PyTorch's.

    python tests/benchmarks/convolution.py                                # all layers
    python tests/benchmarks/convolution.py --layers 1x1,depthwise --batch 32

PyTorch runs eagerly with channels_last. The three take turns. A ratio is of two neighboring turns;
the table gives its median, smallest and largest. Where `convolve` has no form of its own, jaxconv's
column repeats XLA's and shows the noise.
"""

import argparse
import functools
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from machine import interleaved, machine

from jaxconv.layers import convolve
from jaxconv.layers.conv import plain

try:
    import torch
except ModuleNotFoundError:
    torch = None

# Image height and width, channels, filters, window, stride, padding, groups.
LAYERS = {
    "ResNet-50 conv1 7x7/2": (224, 3, 64, 7, 2, 3, 1),
    "ResNet-50 conv2 3x3": (56, 64, 64, 3, 1, 1, 1),
    "ResNet-50 conv3 3x3/2": (56, 128, 128, 3, 2, 1, 1),
    "ResNet-50 conv3 3x3": (28, 128, 128, 3, 1, 1, 1),
    "ResNet-50 conv4 3x3": (14, 256, 256, 3, 1, 1, 1),
    "ResNet-50 conv5 3x3": (7, 512, 512, 3, 1, 1, 1),
    "ResNet-50 conv2 1x1 up": (56, 64, 256, 1, 1, 0, 1),
    "ResNet-50 conv4 1x1 down": (14, 1024, 256, 1, 1, 0, 1),
    "ResNet-50 shortcut 1x1/2": (56, 256, 512, 1, 2, 0, 1),
    "ResNet-18 on 32x32 3x3": (32, 64, 64, 3, 1, 1, 1),
    "VGG-16 conv1_2 3x3": (224, 64, 64, 3, 1, 1, 1),
    "ResNet-18 on 32x32, conv4 3x3": (2, 256, 256, 3, 1, 1, 1),
    "ResNet-18 on 32x32, conv5 3x3": (1, 512, 512, 3, 1, 1, 1),
    "three colours, 32x32, 3x3": (32, 3, 64, 3, 1, 1, 1),
    "AlexNet conv1 11x11/4": (224, 3, 64, 11, 4, 2, 1),
    "AlexNet 2012 conv2 5x5, 2 groups": (27, 96, 256, 5, 1, 2, 2),
    "GoogLeNet 3a 5x5": (28, 16, 32, 5, 1, 2, 1),
    "MobileNet v2 depthwise 3x3 wide": (112, 32, 32, 3, 1, 1, 32),
    "MobileNet v2 depthwise 3x3": (14, 384, 384, 3, 1, 1, 384),
    "MobileNet v2 depthwise 3x3/2": (56, 144, 144, 3, 2, 1, 144),
    "ConvNeXt-T res2 depthwise 7x7": (56, 96, 96, 7, 1, 3, 96),
    "ConvNeXt-T res4 depthwise 7x7": (14, 384, 384, 7, 1, 3, 384),
    "ResNeXt-50 conv2 3x3, 32 groups": (56, 128, 128, 3, 1, 1, 32),
    "ResNeXt-50 conv4 3x3, 32 groups": (14, 512, 512, 3, 1, 1, 32),
}
KINDS = ("forward", "gradient of image", "gradient of weights")


def jax_runs(x, kernel, cotangent, arguments):
    """{kind: function}."""

    def run(x, kernel):
        return convolve(x, kernel, **arguments)

    def of_image(kernel, cotangent):
        return jax.vjp(lambda x: run(x, kernel), x)[1](cotangent)[0]

    def of_weights(x, cotangent):
        return jax.vjp(lambda kernel: run(x, kernel), kernel)[1](cotangent)[0]

    calls = zip(
        KINDS,
        (run, of_image, of_weights),
        ((x, kernel), (kernel, cotangent), (x, cotangent)),
        strict=True,
    )
    return {
        kind: functools.partial(jax.jit(call).lower(*given).compile(), *given)
        for kind, call, given in calls
    }


def torch_runs(x, kernel, cotangent, stride, padding, groups):
    """{kind: function}; empty without PyTorch."""
    if torch is None:
        return {}
    device, tidy = (
        "cuda" if torch.cuda.is_available() else "cpu",
        {"memory_format": torch.channels_last},
    )
    x, cotangent = (
        torch.from_numpy(np.array(a)).permute(0, 3, 1, 2).to(device).contiguous(**tidy)
        for a in (x, cotangent)
    )
    kernel = torch.from_numpy(np.array(kernel)).permute(3, 2, 0, 1).to(device).contiguous(**tidy)

    def forward():
        with torch.inference_mode():
            return torch.nn.functional.conv2d(x, kernel, None, stride, padding, 1, groups)

    def gradient(*wanted):
        numbers = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups)
        return torch.ops.aten.convolution_backward(cotangent, x, kernel, None, *numbers, wanted)

    calls = (
        forward,
        functools.partial(gradient, True, False, False),
        functools.partial(gradient, False, True, False),
    )
    return dict(zip(KINDS, calls, strict=True))


def sampler(run, calls):
    """A function that returns the milliseconds of one call, the mean over some calls."""

    def sample():
        start = time.perf_counter()
        for _ in range(calls):
            result = run()
        if torch is not None and torch.cuda.is_available():
            torch.cuda.synchronize()
        jax.block_until_ready(result)
        milliseconds = 1e3 * (time.perf_counter() - start) / calls
        time.sleep(0.005)  # lets PyTorch's threads stop spinning
        return milliseconds

    return sample


def rows(name, batch, repeats, calls):
    """Yield one line of the table for each kind."""
    size, channels, filters, window, stride, padding, groups = LAYERS[name]
    random = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(random.normal(size=shape), jnp.float32)
        for shape in ((batch, size, size, channels), (window, window, channels // groups, filters))
    )
    arguments = {"stride": stride, "padding": padding, "groups": groups}
    cotangent = jax.eval_shape(lambda: convolve(x, kernel, **arguments))
    cotangent = jnp.asarray(random.normal(size=cotangent.shape), jnp.float32)
    with plain():
        runs = {"XLA": jax_runs(x, kernel, cotangent, arguments)}
    runs |= {
        "jaxconv": jax_runs(x, kernel, cotangent, arguments),
        "PyTorch": torch_runs(x, kernel, cotangent, stride, padding, groups),
    }
    for kind in KINDS:
        samplers = {who: sampler(of[kind], calls) for who, of in runs.items() if of}
        interleaved(samplers, 1)
        results = interleaved(samplers, repeats)
        times = [
            f"{statistics.median(results[who]):.2f}" if who in results else "-" for who in runs
        ]
        yield (
            f"| {name} | {kind} | {' | '.join(times)} | {ratio(results, 'XLA')} | "
            f"{ratio(results, 'PyTorch')} |"
        )


def ratio(results, base):
    """jaxconv's time / another's: median, smallest, largest, and that of the best turns."""
    if base not in results:
        return "-"
    pairs = [a / b for a, b in zip(results["jaxconv"], results[base], strict=True)]
    best = min(results["jaxconv"]) / min(results[base])
    return f"{statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f}; {best:.2f})"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--layers",
        default="",
        help="layers whose name contains one of these, comma-separated; all by default",
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9, help="turns of each")
    parser.add_argument(
        "--calls", type=int, default=1, help="calls in a turn; more on an accelerator"
    )
    arguments = parser.parse_args()
    names = [name for name in LAYERS if any(part in name for part in arguments.layers.split(","))]
    if not names:
        parser.error(
            f"no layer has {arguments.layers!r} in its name; choose from {', '.join(LAYERS)}"
        )
    print(
        machine(*["torch"] * (torch is not None)),
        f"batch {arguments.batch}, float32; load {os.getloadavg()[0]:.1f}",
        sep="; ",
    )
    heads = (
        "layer",
        "what",
        "XLA, ms",
        "jaxconv, ms",
        "PyTorch, ms",
        "over XLA (spread; best turns)",
        "over PyTorch (spread; best turns)",
    )
    print(
        f"| {' | '.join(heads)} |", "|".join(["", *["---"] * len(heads), ""]), sep="\n", flush=True
    )
    for name in names:
        for line in rows(name, arguments.batch, arguments.repeats, arguments.calls):
            print(line, flush=True)


if __name__ == "__main__":
    main()
