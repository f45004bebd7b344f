"""Single convolutions, forward and both gradients: XLA's, jaxconv's and PyTorch's.

    python tests/benchmarks/convolution.py                                # all layers
    python tests/benchmarks/convolution.py --layers 1x1,depthwise --batch 32
    python tests/benchmarks/convolution.py --layers 3x3 --forms "F(2, 3),F(4, 3)"

PyTorch runs eagerly with channels_last. All take turns. A ratio is of two neighboring turns; the
table gives its median, smallest and largest. Where `convolve` has no form of its own, jaxconv's
column repeats XLA's and shows the noise. `--forms` adds Winograd's, whatever `forms.choose` says;
`layers/winograd.py` has the rule that these figures gave. As in launch/*.sh, set
GLIBC_TUNABLES=glibc.malloc.hugetlb=1, or the time of page faults is measured too.
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

from jaxconv.layers import convolve, winograd
from jaxconv.layers.conv import plain

try:
    import torch
except ModuleNotFoundError:
    torch = None

# Image height and width (or all axes), channels, filters, window, stride, padding, groups.
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
    "ResNet-50 conv4 3x3/2": (28, 256, 256, 3, 2, 1, 1),
    "ResNet-50 conv5 3x3/2": (14, 512, 512, 3, 2, 1, 1),
    "ResNet-18 on 32x32 3x3": (32, 64, 64, 3, 1, 1, 1),
    "ResNet-20 conv2 3x3": (32, 16, 16, 3, 1, 1, 1),
    "ResNet-20 conv3 3x3": (16, 32, 32, 3, 1, 1, 1),
    "VGG-16 conv1_1 3x3": (224, 3, 64, 3, 1, 1, 1),
    "VGG-16 conv1_2 3x3": (224, 64, 64, 3, 1, 1, 1),
    "VGG-16 conv2_1 3x3": (112, 64, 128, 3, 1, 1, 1),
    "VGG-16 conv3_1 3x3": (56, 128, 256, 3, 1, 1, 1),
    "VGG-16 conv4_2 3x3": (28, 512, 512, 3, 1, 1, 1),
    "VGG-16 conv5 3x3": (14, 512, 512, 3, 1, 1, 1),
    "AlexNet conv4 3x3": (13, 384, 256, 3, 1, 1, 1),
    "GoogLeNet conv2 3x3": (56, 64, 192, 3, 1, 1, 1),
    "GoogLeNet 3a 3x3": (28, 96, 128, 3, 1, 1, 1),
    "GoogLeNet 3b 3x3": (28, 32, 96, 3, 1, 1, 1),
    "GoogLeNet 4c 3x3": (14, 128, 256, 3, 1, 1, 1),
    "GoogLeNet 5b 3x3": (7, 192, 384, 3, 1, 1, 1),
    "DenseNet block 3 3x3": (14, 128, 32, 3, 1, 1, 1),
    "ConvNeXt-T stem 4x4/4": (224, 3, 96, 4, 4, 0, 1),
    "ConvNeXt-T res3 2x2/2": (56, 96, 192, 2, 2, 0, 1),
    "volume 3x3x3, 32": ((32, 32, 32), 32, 32, 3, 1, 1, 1),
    "volume 3x3x3, 128": ((8, 8, 8), 128, 128, 3, 1, 1, 1),
    "signal 3, 64": ((2048,), 64, 64, 3, 1, 1, 1),
    "signal 3, 256": ((512,), 256, 256, 3, 1, 1, 1),
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
FORMS = {"F(2, 3)": 2, "F(4, 3)": 4}
KINDS = ("forward", "gradient of image", "gradient of weights")


def jax_runs(x, kernel, cotangent, run):
    """{kind: function}."""

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
    axes = x.ndim - 2
    layouts = {2: torch.channels_last, 3: torch.channels_last_3d}
    tidy = {"memory_format": layouts.get(axes, torch.contiguous_format)}
    device, places = "cuda" if torch.cuda.is_available() else "cpu", range(axes)
    x, cotangent = (
        torch.from_numpy(np.array(a))
        .permute(0, axes + 1, *(i + 1 for i in places))
        .to(device)
        .contiguous(**tidy)
        for a in (x, cotangent)
    )
    kernel = torch.from_numpy(np.array(kernel)).permute(axes + 1, axes, *places)
    kernel = kernel.to(device).contiguous(**tidy)
    numbers = ([stride] * axes, [padding] * axes, [1] * axes, False, [0] * axes, groups)

    def forward():
        with torch.inference_mode():
            return torch.ops.aten.convolution(x, kernel, None, *numbers)

    def gradient(*wanted):
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


def forced(m, padding):
    """Winograd's form F(m, 3)."""

    def run(x, kernel):
        axes = x.ndim - 2
        return winograd.convolve(
            x, kernel, ((1,) * axes, ((padding, padding),) * axes, (1,) * axes), (m, m, m)
        )

    return run


def rows(name, batch, repeats, calls, forms):
    """Yield one line of the table for each kind."""
    size, channels, filters, window, stride, padding, groups = LAYERS[name]
    spatial = size if isinstance(size, tuple) else (size, size)
    random = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(random.normal(size=shape), jnp.float32)
        for shape in (
            (batch, *spatial, channels),
            (*(window,) * len(spatial), channels // groups, filters),
        )
    )
    arguments = {"stride": stride, "padding": padding, "groups": groups}
    cotangent = jax.eval_shape(lambda: convolve(x, kernel, **arguments))
    cotangent = jnp.asarray(random.normal(size=cotangent.shape), jnp.float32)
    ours = functools.partial(convolve, **arguments)
    with plain():
        runs = {"XLA": jax_runs(x, kernel, cotangent, ours)}
    runs["jaxconv"] = jax_runs(x, kernel, cotangent, ours)
    for form in forms:
        fits = (window, stride, groups) == (3, 1, 1)
        run = forced(FORMS[form], padding)
        runs[form] = jax_runs(x, kernel, cotangent, run) if fits else {}
    runs["PyTorch"] = torch_runs(x, kernel, cotangent, stride, padding, groups)
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
    parser.add_argument(
        "--forms", default="", help="of Winograd: F(2, 3), F(4, 3) or both, comma-separated"
    )
    arguments = parser.parse_args()
    forms = [form for form in FORMS if form in arguments.forms]
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
        *(f"{form}, ms" for form in forms),
        "PyTorch, ms",
        "over XLA (spread; best turns)",
        "over PyTorch (spread; best turns)",
    )
    print(
        f"| {' | '.join(heads)} |", "|".join(["", *["---"] * len(heads), ""]), sep="\n", flush=True
    )
    for name in names:
        for line in rows(name, arguments.batch, arguments.repeats, arguments.calls, forms):
            print(line, flush=True)


if __name__ == "__main__":
    main()
