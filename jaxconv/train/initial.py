"""The weights that a training starts from: of a folder or another run, fitted to the network.

DIR/weights.json   network, classes, channels, where it came from, the layout of parameter paths,
                   and a fingerprint of the values
DIR/variables      the network's variables, by Orbax

Parameter paths are public. When one changes, `LAYOUT` (models/network.py) grows by one, and
`CONVERSIONS` gets what leads there.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

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

# Layout -> what turns variables by path ("params/conv1/conv/kernel") of that layout into those of
# the next, given the network's name.
CONVERSIONS: dict[int, Callable[[str, dict[str, Any]], dict[str, Any]]] = {}


def save_weights(out: str, model: str, variables: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Write a network's variables to a folder that is not there yet, or empty; returns what
    weights.json says.

    Raises:
      UserError: the folder holds something, or cannot be written.
    """
    description = {
        "model": model,
        "source": source,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "layout": LAYOUT,
        "fingerprint": int(fingerprint(variables)),
        "jaxconv": __version__,
    }
    with new_folder(out) as folder:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "variables", dict(variables))
        write_json(folder / "weights.json", description)
    return description


def load_weights(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables in a folder of `save_weights`, in the layout of today, as numpy arrays; and
    what weights.json says.

    Raises:
      UserError: it is no such folder, damaged, or of a layout that this version does not know.
    """
    if folder.is_file():
        raise UserError(
            f"{folder}: is a file; `jaxconv convert {folder.name} --model=NAME --out=DIR` makes "
            "the folder to start from",
            exit_code=1,
        )
    if not (folder / "weights.json").is_file():
        raise UserError(
            f"{folder}: holds no weights (there is no weights.json); `jaxconv convert` makes such "
            "a folder",
            exit_code=1,
        )
    description = read_json(folder / "weights.json", dict)
    with _reraise_damage(folder), ocp.StandardCheckpointer() as checkpointer:
        # Without a target Orbax would look for the devices that the weights were saved from.
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = checkpointer.metadata(folder / "variables").item_metadata.tree
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes
        )
        variables = checkpointer.restore(folder / "variables", target)
        if int(fingerprint(variables)) != description["fingerprint"]:
            raise ValueError("the values are not those that were saved (their fingerprints differ)")
        flat = {
            name: np.asarray(value)
            for name, value in flax.traverse_util.flatten_dict(variables, sep="/").items()
        }
        layout, model = int(description["layout"]), description["model"]
    if layout > LAYOUT:
        raise UserError(
            f"{folder}: has layout {layout} of parameter paths, and this version knows up to "
            f"{LAYOUT}; update jaxconv",
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


def start_from(place: str, state: TrainState, classes: int) -> tuple[TrainState, list[str]]:
    """A state before its first step whose network has the weights of a folder; see `fit`.

    Args:
      place: a folder of `jaxconv convert`, or the workdir of a run, of which the averaged weights
        are taken where it kept any.
      state: the state as initialised.
      classes: that the network tells apart.

    Returns:
      The state, and what was done, in words.

    Raises:
      UserError: the folder cannot be used, or its weights do not fit the network.
    """
    fitted, said = fitted_weights(place, state, classes)
    fitted = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), fitted, _variables(state))
    params = fitted.pop("params")
    state = state.replace(params=params, model_state=fitted)
    return (
        state.replace(ema=jax.tree.map(jnp.copy, _variables(state))) if state.ema else state
    ), said


def fitted_weights(place: str, state: TrainState, classes: int) -> tuple[dict[str, Any], list[str]]:
    """The variables for `start_from`, and what was done; the state's shapes will do. Raises what
    `start_from` does.
    """
    folder = expand(place, "--config.model.init_from")
    if (folder / "config.json").is_file():
        if members_of(saved_config(folder)):
            raise UserError(
                f"--config.model.init_from={place}: holds an ensemble; start from the workdir of "
                "one network"
            )
        trained, step = restore_run(folder)
        variables, what = trained.variables, f"step {step} of the run"
    else:
        variables, description = load_weights(folder)
        what = f"weights of {description['model']} ({description['source']})"
    try:
        fitted, said = fit(variables, _variables(state), classes)
    except ValueError as error:
        raise UserError(
            f"--config.model.init_from={place}: the weights do not fit the network: {error}",
            exit_code=1,
        ) from error
    return fitted, [f"started from {what} in {folder}", *said]


def _variables(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, **state.model_state}


def fit(
    variables: Mapping[str, Any], fresh: Mapping[str, Any], classes: int
) -> tuple[dict[str, Any], list[str]]:
    """Variables for a network that may tell other classes apart, and see other channels, than the
    one they come from.

    The last layer is fresh where its number of logits differs. A first layer that saw other
    channels is adapted, so that a grey image gives what it gave with its channel three times: for
    one channel the filters' channels are summed; for more they are repeated in order, and scaled by
    old / new.

    Args:
      variables: `params` and other collections.
      fresh: the new network's, as initialised.
      classes: that the new network tells apart.

    Returns:
      The variables, and what was done, in words.

    Raises:
      ValueError: something is missing, left over or of another shape; the message lists it by name.
    """
    have, want = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (variables, fresh))
    check_finite(have)
    heads = [
        layer
        for layer in {path.rsplit("/", 1)[0]: None for path in want}
        if _other_outputs(layer, have, want, classes)
    ]
    taken, misshapen = {}, []
    said = [
        f"{head} is fresh: {classes} classes instead of {have[f'{head}/bias'].shape[-1]}"
        for head in heads
    ]
    for path, leaf in want.items():
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
                f"{path} sees {leaf.shape[-2]} channels instead of {have[path].shape[-2]}: {how}"
            )
        else:
            misshapen.append(f"{path} is {have[path].shape}, where {leaf.shape} was expected")
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


def _other_outputs(
    layer: str, have: Mapping[str, Any], want: Mapping[str, Any], classes: int
) -> bool:
    """Whether a layer has `classes` outputs, and had another number where the weights come
    from: its inputs are the same.
    """
    kernel, bias = f"{layer}/kernel", f"{layer}/bias"
    if not all(path in tree for path in (kernel, bias) for tree in (have, want)):
        return False
    same_inputs = have[kernel].shape[:-1] == want[kernel].shape[:-1]
    return same_inputs and want[bias].shape == (classes,) and have[bias].shape != (classes,)


def _but_channels(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], shape[-1])


def adapt_channels(kernel: np.ndarray, channels: int) -> tuple[np.ndarray, str]:
    """A first layer's kernel [*window, C, K] for another number of channels, and how it was done;
    see `fit`.
    """
    kernel, old = np.asarray(kernel), kernel.shape[-2]
    if channels == 1:
        return kernel.sum(axis=-2, keepdims=True), f"the filters' {old} channels are summed"
    repeated = np.take(kernel, np.arange(channels) % old, axis=-2) * np.float32(old / channels)
    return repeated, f"the filters' channels are repeated in order, times {old}/{channels}"
