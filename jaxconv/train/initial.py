"""Initial weights of a run: loaded from a folder or another run, and fitted to the network; or, for
a network that asks for it, computed from training images.

DIR/weights.json   the network's name, the source, the number of parameters, the layout of parameter
                   paths, a fingerprint of the values, and the version of jaxconv
DIR/variables      the network's variables, saved by Orbax

Parameter paths are public. When one changes, increment `LAYOUT` (models/network.py) and add a
conversion to `CONVERSIONS`.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxconv.errors import UserError, in_words, some
from jaxconv.files import expand, new_folder
from jaxconv.models.network import LAYOUT
from jaxconv.train.ensemble import members_of
from jaxconv.train.parallel import fingerprint
from jaxconv.train.restore import restore_run
from jaxconv.train.state import TrainState, check_finite
from jaxconv.train.workdir import read_json, saved_config, write_json
from jaxconv.version import __version__

# Layout -> function (network's name, variables of that layout) -> variables of the next layout.
# Variables are keyed by path, such as "params/conv1/conv/kernel".
CONVERSIONS: dict[int, Callable[[str, dict[str, Any]], dict[str, Any]]] = {}


def save_weights(
    out: str,
    model: str,
    variables: Mapping[str, Any],
    source: str,
    preprocessing: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a network's variables to a new or empty folder; return the content of weights.json.

    `preprocessing` is what they want of images, see weights/published.py, where that is known.

    Raises:
      UserError: the folder is not empty, or cannot be written.
    """
    description = {
        "model": model,
        "source": source,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "layout": LAYOUT,
        "fingerprint": int(fingerprint(variables)),
        "jaxconv": __version__,
    } | ({"preprocessing": dict(preprocessing)} if preprocessing else {})
    with new_folder(out) as folder:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "variables", dict(variables))
        write_json(folder / "weights.json", description)
    return description


def load_weights(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load a folder written by `save_weights`.

    Returns:
      The variables as numpy arrays, converted to the current layout, and the content of
      weights.json.

    Raises:
      UserError: it is not such a folder, it is damaged, it holds NaN, or its layout is newer than
        this version's.
    """
    if folder.is_file():
        raise UserError(
            f"{folder}: is a file; `jaxconv convert {folder.name} --model=NAME --out=DIR` makes "
            "the folder to start from",
            exit_code=1,
        )
    if not (folder / "weights.json").is_file():
        raise UserError(
            f"{folder}: holds no weights (weights.json not found); `jaxconv convert` creates such "
            "a folder",
            exit_code=1,
        )
    description = read_json(folder / "weights.json", dict)
    with _reraise_damage(folder), ocp.StandardCheckpointer() as checkpointer:
        # Without a target, Orbax looks for the devices that the weights were saved from.
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = checkpointer.metadata(folder / "variables").item_metadata.tree
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes
        )
        variables = checkpointer.restore(folder / "variables", target)
        if int(fingerprint(variables)) != description["fingerprint"]:
            raise ValueError("the values differ from the saved ones (fingerprint mismatch)")
        flat = {
            name: np.asarray(value)
            for name, value in flax.traverse_util.flatten_dict(variables, sep="/").items()
        }
        layout, model = int(description["layout"]), description["model"]
    try:
        check_finite(flat)
    except ValueError as error:
        raise UserError(f"{folder}: {error}", exit_code=1) from error
    if layout > LAYOUT:
        raise UserError(
            f"{folder}: uses layout {layout} of parameter paths, but this version supports layouts "
            f"up to {LAYOUT}; update jaxconv",
            exit_code=1,
        )
    for version in range(layout, LAYOUT):
        flat = CONVERSIONS[version](model, flat)
    return flax.traverse_util.unflatten_dict(flat, sep="/"), description


@contextlib.contextmanager
def _reraise_damage(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # damaged files can raise anything
        raise UserError(
            f"{folder}: the weights cannot be read ({in_words(error)})", exit_code=1
        ) from error


# `config.model.init_from` -> the variables there, and what they are, for messages.
Read = Callable[[str], tuple[dict[str, Any], str]]


def start_from(
    place: str, state: TrainState, classes: int, read: Read
) -> tuple[TrainState, list[str]]:
    """Set the weights of an initial state to those of a place; see `fit`.

    Args:
      place: `config.model.init_from`.
      state: the initialized state.
      classes: number of classes of the network.
      read: reads the place, as `read_folder` does, or one that knows more places.

    Returns:
      The state, and messages that describe what was done.

    Raises:
      UserError: the folder cannot be used, or its weights do not fit the network.
    """
    fitted, said = fitted_weights(place, state, classes, read)
    return with_variables(state, fitted), said


def start_from_images(
    model: Any, state: TrainState, images: jax.Array
) -> tuple[TrainState, list[str]]:
    """Set what a network computes from data; see `looks_at_images`.

    Args:
      model: the network, with a `data_dependent_init`.
      state: the initialized state.
      images: [N, ...] float32, normalised.

    Returns:
      The state, and messages that describe what was done.
    """
    variables = model.data_dependent_init(_variables(state), images)
    said = f"{type(model).__name__}: initialised on {len(images):,} training images"
    return with_variables(state, variables), [said]


def looks_at_images(model: Any) -> int:
    """How many training images a network's initialisation takes; 0 if it takes none.

    Such a network, of the registry or custom, has `init_images`, their number, and
    `data_dependent_init(variables, images [N, ...] float32, normalised) -> variables`, which is
    called once before the first step (Krahenbuhl et al. 2016, arXiv:1511.06856).
    """
    return model.init_images if hasattr(model, "data_dependent_init") else 0


def with_variables(state: TrainState, variables: Mapping[str, Any]) -> TrainState:
    """A state with these variables of its network, also as the first averages."""
    new = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), variables, _variables(state))
    params = new.pop("params")
    state = state.replace(params=params, model_state=new)
    return state.replace(ema=jax.tree.map(jnp.copy, _variables(state))) if state.ema else state


def fitted_weights(
    place: str, state: TrainState, classes: int, read: Read
) -> tuple[dict[str, Any], list[str]]:
    """The variables and messages for `start_from`, which raises the same errors.

    `state` may hold shapes instead of arrays.
    """
    variables, what = read(place)
    try:
        fitted, said = fit(variables, _variables(state), classes)
    except ValueError as error:
        raise UserError(
            f"--config.model.init_from={place}: the weights do not fit the network: {error}",
            exit_code=1,
        ) from error
    return fitted, [f"started from {what}", *said]


def read_folder(place: str, option: str = "--config.model.init_from") -> tuple[dict[str, Any], str]:
    """The variables in a folder written by `jaxconv convert`, or of the run in a workdir, averaged
    if it has averages; and what they are, for messages.

    Raises:
      UserError: the folder cannot be used.
    """
    folder = expand(place, option)
    if (folder / "config.json").is_file():
        if members_of(saved_config(folder)):
            raise UserError(
                f"{option}={place}: holds an ensemble; start from the workdir of one network"
            )
        trained, step = restore_run(folder)
        return trained.variables, f"step {step} of the run in {folder}"
    variables, description = load_weights(folder)
    return variables, f"weights of {description['model']} ({description['source']}) in {folder}"


def _variables(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, **state.model_state}


def fit(
    variables: Mapping[str, Any], fresh: Mapping[str, Any], classes: int
) -> tuple[dict[str, Any], list[str]]:
    """Fit variables to a network that may have other classes and input channels.

    Last layers are newly initialized if their number of outputs differs, such as a classifier's
    logits, or the logits and codes of a detector's anchors. A first layer with another
    number of input channels is adapted so that a gray image gives the same output as its channel
    repeated three times: for one channel, the filters' channels are summed; for more, they are
    repeated in order and scaled by old / new.

    If the network has a backbone and the variables are of a network without one, they are the
    backbone's: their last layers are left out, and what follows the backbone is newly initialized.
    Scales and biases of BatchNorm become statistics where the network's are frozen (see
    `layers.FrozenBatchNorm`), and parameters where they are not.

    Args:
      variables: `params` and other collections.
      fresh: the initialized variables of the new network.
      classes: number of classes of the new network.

    Returns:
      The variables, and messages that describe what was done.

    Raises:
      ValueError: variables are missing, left over or of another shape; the message lists them.
    """
    # Flax types the leaves as trees.
    have, want = (
        cast(dict[str, Any], flax.traverse_util.flatten_dict(tree, sep="/"))
        for tree in (variables, fresh)
    )
    have, taken, said = _as_backbone(have, want)
    heads = [
        layer
        for layer in {path.rsplit("/", 1)[0]: None for path in want}
        if _other_outputs(layer, have, want, classes)
    ]
    misshapen = []
    said += [
        f"{head} is newly initialized: {want[f'{head}/bias'].shape[-1]} outputs instead of "
        f"{have[f'{head}/bias'].shape[-1]}"
        for head in heads
    ]
    for path, leaf in want.items():
        if path in taken:
            continue
        if path.rsplit("/", 1)[0] in heads:
            taken[path] = leaf
        elif path not in have:
            continue
        elif have[path].shape == leaf.shape:
            taken[path] = have[path]
        elif (
            path.endswith("/kernel")
            and len(leaf.shape) > 2
            and _but_channels(have[path].shape) == _but_channels(leaf.shape)
        ):
            taken[path], how = adapt_channels(have[path], leaf.shape[-2])
            said.append(
                f"{path} has {leaf.shape[-2]} channels instead of {have[path].shape[-2]}: {how}"
            )
        else:
            misshapen.append(f"{path} has shape {have[path].shape}, expected {leaf.shape}")
    wrong = {
        "missing": sorted(want.keys() - have.keys() - taken.keys()),
        "left over": sorted(have.keys() - want.keys()),
        "of another shape": misshapen,
    }
    if any(wrong.values()):
        raise ValueError(
            "; ".join(f"{what}: {some(found)}" for what, found in wrong.items() if found)
        )
    return flax.traverse_util.unflatten_dict({path: taken[path] for path in want}, sep="/"), said


def _as_backbone(
    have: dict[str, Any], want: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The variables of a network without a backbone as those of the backbone of another.

    Returns:
      The variables by the new network's paths, the new variables of what is not its backbone, and
      messages. Without a backbone in `want`, or with one in `have`, they are the whole network's.
    """
    inner = {path for path in want if path.split("/")[1] == "backbone"}
    if not inner or any(path.split("/")[1] == "backbone" for path in have):
        return _in_collections(have, want), {}, []
    renamed = {path.replace("/", "/backbone/", 1): value for path, value in have.items()}
    renamed = _in_collections(renamed, want)
    left = sorted({path.split("/")[2] for path in renamed.keys() - inner})
    new = {path: leaf for path, leaf in want.items() if path not in inner}
    said = ["they are the backbone's; everything after it is newly initialized"]
    said += [f"left out, since the backbone ends before them: {some(left)}"] if left else []
    return {path: value for path, value in renamed.items() if path in inner}, new, said


def _in_collections(have: dict[str, Any], want: Mapping[str, Any]) -> dict[str, Any]:
    """The variables, those of a BatchNorm in the collection in which the network has them."""
    other = {"params": "batch_stats", "batch_stats": "params"}
    found = dict(have)
    for path in want.keys() - have.keys():
        collection, _, rest = path.partition("/")
        twin = f"{other.get(collection)}/{rest}"
        if twin in found and twin not in want:
            found[path] = found.pop(twin)
    return found


def _other_outputs(
    layer: str, have: Mapping[str, Any], want: Mapping[str, Any], classes: int
) -> bool:
    """Whether a layer has so many outputs for each class, or also for the background, and differs
    from its source in their number alone.
    """
    kernel, bias = f"{layer}/kernel", f"{layer}/bias"
    if not all(path in tree for path in (kernel, bias) for tree in (have, want)):
        return False
    old, new = have[bias].shape[-1], want[bias].shape[-1]
    if have[kernel].shape[:-1] != want[kernel].shape[:-1] or old == new or not classes:
        return False
    each = [new // (classes + more) for more in (0, 1) if new % (classes + more) == 0]
    return any(old % values == 0 for values in each)


def _but_channels(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], shape[-1])


def adapt_channels(kernel: np.ndarray, channels: int) -> tuple[np.ndarray, str]:
    """Adapt a first layer's kernel [*window, C, K] to another number of channels, see `fit`.

    Returns:
      The kernel, and a description of how it was adapted.
    """
    kernel, old = np.asarray(kernel), kernel.shape[-2]
    if channels == 1:
        return kernel.sum(axis=-2, keepdims=True), f"the filters' {old} channels are summed"
    repeated = np.take(kernel, np.arange(channels) % old, axis=-2) * np.float32(old / channels)
    return repeated, f"the filters' channels are repeated in order, times {old}/{channels}"
