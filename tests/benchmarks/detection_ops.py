"""The operations of detection: jaxconv's and torchvision's compiled ones, taking turns.

    python tests/benchmarks/detection_ops.py
    python tests/benchmarks/detection_ops.py --rows NMS --repeats 31

NMS of boxes that are scattered over an image of 800 x 1344 pixels, most of which stay, and of boxes
around 30 objects, of which few stay; the threshold is 0.5. RoIAlign of 512 boxes to 7 x 7 with 2 x
2 points, on 256 channels: one map at stride 16, and a pyramid of strides 4 to 32. Both start from
arrays that are there, and jaxconv's programs are compiled before. A ratio is of two neighboring
turns; the table gives its median, smallest and largest. The results are compared first.

Without torchvision, or without its operators, only jaxconv is measured. PyPI's build for CUDA
finds its operators for CPUs beside a CPU build of torch only if libraries of the names that it
links to exist; `--stand_ins` compiles such libraries, without content, with `cc`.
"""

import argparse
import ctypes
import os
import statistics
import subprocess
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from machine import interleaved, machine, ratios

from jaxconv.layers import multilevel_roi_align, roi_align
from jaxconv.tasks.detection.nms import nms

try:
    import torch
except ModuleNotFoundError:
    torch = None

IMAGE = (800, 1344)
TURNED = [1, 0, 3, 2]
# What torchvision's library for CUDA looks up when it is loaded.
STAND_INS = """
int aoti_torch_get_current_cuda_stream(int device, void **stream) { return 1; }
void torch_c10_cuda_check_msg(int a, const char *b, const char *c, int d, int e, char **message) {
  *message = 0;
}
void torch_c10_cuda_free_error_msg(char *message) {}
"""


def load_torchvision(stand_ins):
    """torchvision with its operators, or None."""
    if torch is None:
        return None
    if stand_ins:
        with tempfile.TemporaryDirectory() as folder:
            for name in ("libtorch_cuda.so", "libc10_cuda.so"):
                path = os.path.join(folder, name)
                command = ["cc", "-shared", "-fPIC", "-xc", "-", f"-Wl,-soname,{name}", "-o", path]
                subprocess.run(command, input=STAND_INS, text=True, check=True)
                ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    try:
        import torchvision
    except (ModuleNotFoundError, RuntimeError) as error:
        print(f"torchvision is not measured: {error}")
        return None
    return torchvision if torchvision.extension._has_ops() else None


def boxes_of(count, objects):
    """Boxes and scores; around so many objects, or anywhere for 0."""
    random = np.random.default_rng(0)
    places = objects or count
    corner = random.uniform(0, [0.85 * side for side in IMAGE], (places, 2))
    side = np.exp(random.uniform(np.log(16), np.log(256), (places, 2)))
    which = random.integers(0, places, count) if objects else np.arange(count)
    corner, side = corner[which], side[which]
    if objects:
        corner += 0.15 * side * random.normal(size=(count, 2))
        side *= np.exp(0.15 * random.normal(size=(count, 2)))
    boxes = np.concatenate([corner, corner + side], axis=1)
    return np.clip(boxes, 0, [*IMAGE, *IMAGE]).astype(np.float32), random.uniform(
        size=count
    ).astype(np.float32)


def tensor(array):
    return torch.from_numpy(np.array(array)).to("cuda" if torch.cuda.is_available() else "cpu")


def nms_runs(count, objects, torchvision):
    """{who: function}."""
    boxes, scores = boxes_of(count, objects)
    ours, arrays = jax.jit(lambda *x: nms(*x, 0.5)), (jnp.asarray(boxes), jnp.asarray(scores))
    runs = {"jaxconv": lambda: ours(*arrays)}
    if torchvision:
        tensors = tensor(boxes[:, TURNED]), tensor(scores)
        runs["torchvision"] = lambda: torchvision.ops.nms(*tensors, 0.5)
        kept = np.flatnonzero(runs["jaxconv"]())
        assert kept.tolist() == sorted(runs["torchvision"]().tolist())
    return runs


def roi_runs(strides, backward, torchvision):
    """{who: function}, which returns the values or the gradients of the maps."""
    random = np.random.default_rng(1)
    boxes = boxes_of(512, 0)[0]
    maps = [
        random.normal(size=(IMAGE[0] // s, IMAGE[1] // s, 256)).astype(np.float32) for s in strides
    ]
    slopes = random.normal(size=(512, 7, 7, 256)).astype(np.float32)

    def values(maps, boxes):
        if len(strides) == 1:
            return roi_align(maps[0], boxes, 7, 1 / strides[0])
        return multilevel_roi_align(maps, boxes, 7, strides)

    def both(maps, boxes, slopes):
        result, back = jax.vjp(lambda maps: values(maps, boxes), maps)
        return result, back(slopes)

    arrays = [*map(jnp.asarray, maps)], jnp.asarray(boxes), jnp.asarray(slopes)
    run = jax.jit(both)
    runs = {"jaxconv": lambda: run(*arrays)}
    if not backward:
        alone = jax.jit(values)
        runs["jaxconv"] = lambda: alone(*arrays[:2])
    if torchvision:
        names = [str(n) for n in range(len(strides))]
        pool = torchvision.ops.MultiScaleRoIAlign(names, 7, 2)
        levels = {
            name: tensor(x.transpose(2, 0, 1)[None]).requires_grad_(backward)
            for name, x in zip(names, maps, strict=True)
        }
        theirs, weights = [tensor(boxes[:, TURNED])], tensor(slopes.transpose(0, 3, 1, 2))

        def torch_run():
            result = pool(levels, theirs, [IMAGE])
            if not backward:
                return result
            return result, torch.autograd.grad(result, [*levels.values()], weights)

        runs["torchvision"] = torch_run
        found, wanted = (run()[0] if backward else run() for run in runs.values())
        wanted = wanted.detach().cpu().numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(found, wanted, atol=2e-4)
    return runs


ROWS = {
    "NMS, 1,000 boxes scattered": lambda t: nms_runs(1000, 0, t),
    "NMS, 1,000 boxes of 30 objects": lambda t: nms_runs(1000, 30, t),
    "NMS, 10,000 boxes scattered": lambda t: nms_runs(10_000, 0, t),
    "NMS, 10,000 boxes of 30 objects": lambda t: nms_runs(10_000, 30, t),
    "RoIAlign, one map, forward": lambda t: roi_runs((16,), False, t),
    "RoIAlign, one map, forward and backward": lambda t: roi_runs((16,), True, t),
    "RoIAlign, pyramid, forward": lambda t: roi_runs((4, 8, 16, 32), False, t),
    "RoIAlign, pyramid, forward and backward": lambda t: roi_runs((4, 8, 16, 32), True, t),
}


def sampler(run):
    """A function that returns the milliseconds of one call."""

    def sample():
        start = time.perf_counter()
        jax.block_until_ready(run())
        if torch is not None and torch.cuda.is_available():
            torch.cuda.synchronize()
        milliseconds = 1e3 * (time.perf_counter() - start)
        time.sleep(0.005)  # lets PyTorch's threads stop spinning
        return milliseconds

    return sample


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="", help="rows whose name contains this; all by default")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each")
    parser.add_argument(
        "--stand_ins", action="store_true", help="compile libraries that torchvision links to"
    )
    arguments = parser.parse_args()
    names = [name for name in ROWS if arguments.rows in name]
    if not names:
        parser.error(f"no row has {arguments.rows!r} in its name; choose from {', '.join(ROWS)}")
    torchvision = load_torchvision(arguments.stand_ins)
    packages = ["torch", "torchvision"] if torchvision else []
    threads = f"; torch on {torch.get_num_threads()} threads" if torchvision else ""
    print(f"{machine(*packages)}{threads}; load {os.getloadavg()[0]:.1f}")
    heads = "| what | jaxconv, ms | torchvision, ms | jaxconv / torchvision |"
    print(heads, "|---|---|---|---|", sep="\n", flush=True)
    for name in names:
        samplers = {who: sampler(run) for who, run in ROWS[name](torchvision).items()}
        interleaved(samplers, 2)
        results = interleaved(samplers, arguments.repeats)
        times = [
            f"{statistics.median(results[who]):.1f}" if who in results else "-"
            for who in ("jaxconv", "torchvision")
        ]
        ratio = ratios(results, "jaxconv", "torchvision") if torchvision else "-"
        print(f"| {name} | {' | '.join(times)} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
