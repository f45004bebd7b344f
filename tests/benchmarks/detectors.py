"""Training steps of whole detectors: jaxconv and torchvision, taking turns.

    python tests/benchmarks/detectors.py
    python tests/benchmarks/detectors.py --networks fcos_resnet50_fpn --size 512

A step is forward, losses, backward and an update by SGD with momentum, of one batch with 8 objects
an image; the backbone's BatchNorm is fixed in both. torchvision runs eagerly, with channels_last;
it resizes nothing. Each is a process of its own, see networks.py, which also says what the peak
memory is. Without torchvision's operators see detection_ops.py.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from detection_ops import TURNED, load_torchvision
from machine import interleaved, machine, ratios
from networks import Contender, serve

import jaxconv
from jaxconv.compiling import hand_back_memory
from jaxconv.data.interface import RANDOM_KEY
from jaxconv.data.objects import as_bits
from jaxconv.tasks.detection.training import losses, training_choices

OBJECTS = 8


def background(name):
    """1 where torchvision counts the background among the classes."""
    return int(not name.startswith(("retinanet", "fcos")))


def batch_of(size, batch, classes):
    """Images, and the truth of `training.losses`, with masks."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, 0.5 * size, (batch, OBJECTS, 2))
    ends = corners + random.uniform(0.1 * size, 0.45 * size, corners.shape)
    boxes = np.concatenate([corners, ends], axis=-1).astype(np.float32)
    row = np.arange(size)
    inside = [(row >= boxes[..., k, None]) & (row < boxes[..., k + 2, None]) for k in (0, 1)]
    masks = inside[0][..., :, None] & inside[1][..., None, :]
    return {
        "image": random.normal(size=(batch, size, size, 3)).astype(np.float32),
        "boxes": boxes,
        "classes": random.integers(0, classes, (batch, OBJECTS)).astype(np.int32),
        "valid": np.ones((batch, OBJECTS), bool),
        "whole_masks": masks,
        "masks": np.stack([as_bits(one, OBJECTS) for one in masks]),
        "position": np.arange(batch, dtype=np.int32),
    }


def jax_run(name, given, size):
    """(function that starts one step, function that waits for it, seconds to compile)."""
    model = jaxconv.create_model(name, 91 - background(name))
    batch = {k: jnp.asarray(v) for k, v in given.items() if k != "whole_masks"}
    canvas, sizes = (size, size), jnp.full((len(batch["image"]), 2), size, jnp.float32)

    def keys(batch, number):
        return jax.vmap(jax.random.fold_in, in_axes=(0, None))(batch[RANDOM_KEY], number)

    def objective(outputs, batch):
        found = losses(model, outputs, batch, canvas, keys(batch, 2))
        return functools.reduce(jnp.add, found.values()), {}

    def call(batch):
        return training_choices(model, batch, canvas, sizes, keys(batch, 1))

    optimizer, key = optax.sgd(1e-3, momentum=0.9), jax.random.key(0)
    images = batch["image"]
    state = jax.jit(lambda key: jaxconv.create_state(model, optimizer, key, images[:1]))(key)
    start = time.perf_counter()
    step = jaxconv.make_train_step(model, optimizer, objective=objective, call=call)
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch, key)
    compiled = compiled.compile(jaxconv.compiler_options())
    hand_back_memory()  # as the commands do
    held = [state]

    def run():
        held[0], metrics = compiled(held[0], batch, key)
        return metrics["loss"]

    return run, jax.block_until_ready, time.perf_counter() - start


def fixed(module, frozen):
    """A module of PyTorch with every BatchNorm replaced by `frozen`."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            setattr(module, name, frozen(child.num_features))
        else:
            fixed(child, frozen)
    return module


def torch_run(name, given, size, torchvision):
    """The same of torchvision."""
    torch.manual_seed(0)
    settings = {"weights": None, "weights_backbone": None, "num_classes": 91}
    model = torchvision.models.get_model(name, **settings, min_size=size, max_size=size)
    fixed(model.backbone, torchvision.ops.misc.FrozenBatchNorm2d)
    count = sum(parameter.numel() for parameter in model.parameters())
    if count != jaxconv.model_info(name).parameters:
        raise RuntimeError(f"{name} has {count:,} parameters here")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device, memory_format=torch.channels_last).train()
    images = [torch.from_numpy(x.transpose(2, 0, 1).copy()).to(device) for x in given["image"]]
    targets = [
        {
            "boxes": torch.from_numpy(given["boxes"][n][:, TURNED].copy()).to(device),
            "labels": torch.from_numpy(given["classes"][n] + background(name)).long().to(device),
            "masks": torch.from_numpy(given["whole_masks"][n]).to(torch.uint8).to(device),
        }
        for n in range(len(images))
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = sum(model(images, targets).values())
        loss.backward()
        optimizer.step()
        return loss

    def wait(_):
        if device == "cuda":
            torch.cuda.synchronize()

    start = time.perf_counter()
    wait(run())
    return run, wait, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="retinanet_resnet50_fpn,maskrcnn_resnet50_fpn")
    parser.add_argument("--size", type=int, default=320, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7, help="turns of each")
    parser.add_argument("--stand_ins", default="no", help="yes: see detection_ops.py")
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = arguments.size
    if arguments.only:
        name = arguments.networks
        given = batch_of(size, arguments.batch, 91 - background(name))
        if arguments.only == "jaxconv":
            serve("jaxconv", jax_run(name, given, size))
            return
        torchvision = load_torchvision(arguments.stand_ins == "yes")
        if torchvision is not None:
            serve(arguments.only, torch_run(name, given, size, torchvision))
        return
    print(machine("flax", "torch"), f"{size} x {size} pixels, batch {arguments.batch}", sep="; ")
    print(
        "| network | images/s | time / torchvision | seconds to compile | peak MB, torchvision's |"
    )
    print("|---|---|---|---|---|", flush=True)
    for name in arguments.networks.split(","):
        words = {"--networks": name, "--size": size, "--batch": arguments.batch}
        words["--stand_ins"] = arguments.stand_ins
        processes = {
            who: Contender(who, words, script=__file__) for who in ("jaxconv", "eager_huge")
        }
        if processes["eager_huge"].compiled is None:
            raise SystemExit("torchvision with its operators is needed; see detection_ops.py")
        found = interleaved({who: one.sample for who, one in processes.items()}, arguments.repeats)
        peaks = [processes[who].ask("peak") for who in ("jaxconv", "eager_huge")]
        cells = [
            name,
            f"{arguments.batch / statistics.median(found['jaxconv']):.2f}",
            ratios(found, "jaxconv", "eager_huge"),
            f"{processes['jaxconv'].compiled:.0f}",
            f"{peaks[0]:,.0f}, {peaks[1]:,.0f} = {peaks[0] / peaks[1]:.2f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
        for one in processes.values():
            one.end()


if __name__ == "__main__":
    main()
