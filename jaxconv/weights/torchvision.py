"""Convert weights from torchvision's layout, and from those of others whose names names.py has: the
names of parameters and the order of axes.

PyTorch, Caffe                         ours
convolution weight [K, C, H, W]        kernel [H, W, C, K]; of volumes with one axis more
transposed convolution [C, K, H, W]    kernel [H, W, C, K], turned by 180 degrees
linear weight [K, D]                   kernel [D, K]; after a volume, D is in the order C, H, W
                                       in PyTorch and H, W, C here
convolution of a whole map             kernel [H * W * C, K] of a linear layer (timm's VGG)
batch and layer norm weight, bias      scale, bias
running_mean, running_var              batch_stats mean, var
"""

import functools
import re
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxconv.errors import some
from jaxconv.models import MODELS, abstract_variables, create_model, list_models, usual_task
from jaxconv.train.state import check_finite
from jaxconv.weights.detector_names import is_transposed, todays_names
from jaxconv.weights.names import SCHEMES, keys_of, schemes_of
from jaxconv.weights.naming import Scheme
from jaxconv.weights.wrappers import unwrap

# A number of classes that is no width of a layer.
_SOME_CLASSES = 7919
# Networks whose auxiliary classifiers a file may lack.
WITH_AUXILIARIES = ("googlenet_torchvision", "inception_v3")
# Share of names and sizes in common, from which on weights look like those of a network. No two
# networks have so much in common, but for those that have all.
_ALIKE = 0.97


def load_torchvision(
    name: str, state_dict: Mapping[str, Any], num_classes: int = 0, weights_key: str = ""
) -> dict[str, Any]:
    """Convert torchvision's state dict, or another's of the network, to our variables.

    Which names it has is found out from the names; see `names.SCHEMES`.

    Args:
      name: of our network, such as `resnet50`.
      state_dict: arrays by their names: numpy, or PyTorch tensors; or a checkpoint that
        holds such a dictionary, under names with a prefix or without, see `wrappers.unwrap`.
      num_classes: of the weights; 0 infers it from their last bias. The number of channels is that
        of their first layer.
      weights_key: of several dictionaries, the one to take, such as `model_ema`.

    Returns:
      `params` and, with BatchNorm, `batch_stats`, as float32 numpy arrays.

    Raises:
      ValueError: entries are missing, left over, of another shape, or not finite; the message names
        the first of each, and the network that the weights look like. Then nothing is loaded.
    """
    arrays = as_float32(unwrap(state_dict, weights_key)[0])
    try:
        return _load(name, arrays, num_classes)
    except ValueError as error:
        raise ValueError(f"{error}{_looks_like(name, arrays)}") from error


def as_float32(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays of floating point numbers, numpy's or PyTorch's, as numpy's float32, without counters
    such as `num_batches_tracked`.

    Raises:
      ValueError: an array holds other numbers, NaN or infinity.
    """
    found = {}
    for name, value in arrays.items():
        if name.endswith("num_batches_tracked"):  # made a float by some
            continue
        if hasattr(value, "detach"):  # PyTorch's, maybe a parameter, on another device, bfloat16
            value = value.detach().cpu()
            value = value.float() if value.is_floating_point() else value
        array = np.asarray(value)
        if jnp.issubdtype(array.dtype, jnp.floating):
            with np.errstate(over="ignore"):  # of float64: found below
                found[name] = array.astype(np.float32)
        elif array.ndim:
            raise ValueError(
                f"{name} is {array.dtype}, not floating point numbers; dequantize the weights"
            )
    check_finite(found)
    return found


def _load(name: str, arrays: Mapping[str, np.ndarray], num_classes: int) -> dict[str, Any]:
    arrays = {key: arrays[of] for of, key in todays_names(name, arrays).items()}
    extra_arguments = _arguments(name, arrays)
    scheme = _scheme(name, arrays, extra_arguments)
    of = SCHEMES[scheme] if scheme else Scheme({})
    arrays = {key: value for key, value in arrays.items() if not re.fullmatch(of.unused, key)}
    classes = num_classes or _logits(name, arrays, extra_arguments, scheme)
    flat = _leaves(name, classes, extra_arguments)
    keys = keys_of(name, flat, scheme)
    if of.channels_last:
        arrays = _without_biases(arrays, keys)
    loaded, missing, misshapen = {}, [], []
    for path, leaf in flat.items():
        key, module = keys[path], path.split("/", 1)[1].rsplit("/", 1)[0]
        if key not in arrays:
            missing.append(f"{key} (for {path})")
            continue
        channels, transposed = flattened_channels(name, module), is_transposed(module)
        if of.channels_last:
            value = _as_it_is(arrays[key], leaf.shape)
        else:
            value = _turned(arrays[key], leaf.shape, channels, transposed)
        if value is None and leaf.shape[-2:-1] == usual_task(name)[0][-1:]:
            # The first layer, of images with another number of channels.
            shape = (*leaf.shape[:-2], *arrays[key].shape[1:2], leaf.shape[-1])
            value = _turned(arrays[key], shape, 0, False)
        if value is None:
            misshapen.append(f"{key} is {arrays[key].shape}, but {path} is {leaf.shape}")
        else:
            bgr = re.fullmatch(of.bgr, f"{name}/{module}") and path.endswith("/kernel")
            loaded[path] = np.ascontiguousarray(value[..., ::-1, :]) if bgr else value
    left_over = sorted(arrays.keys() - set(keys.values()))
    if missing or left_over or misshapen:
        parts = [("missing", missing), ("left over", left_over), ("of another shape", misshapen)]
        raise ValueError(
            f"{name}: " + "; ".join(f"{what}: {some(found)}" for what, found in parts if found)
        )
    return unflatten_dict(loaded, sep="/")


def _as_it_is(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """An array whose axes are in our order, or None if it does not fit `shape`."""
    if value.ndim == len(shape) == 4 and shape[2] == 1 and value.shape[3] == 1 != value.shape[2]:
        value = value.swapaxes(2, 3)  # depthwise: [H, W, C, 1]
    return np.ascontiguousarray(value).reshape(shape) if value.shape == shape else None


def _without_biases(
    arrays: Mapping[str, np.ndarray], keys: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """The arrays without the biases of convolutions before a norm, whose mean they lower."""
    found = dict(arrays)
    for path, mean in keys.items():
        if convolution := re.fullmatch(r"batch_stats/(.*)norm/mean", path):
            kernel = keys.get(f"params/{convolution[1]}conv/kernel", "")
            bias = kernel.rpartition("/")[0] + "/bias"
            if bias in found and mean in found:
                found[mean] = found[mean] - found.pop(bias)
    return found


def _arguments(name: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """What the network is made with: auxiliary classifiers are not in every file."""
    has = any(key.lower().startswith("aux") for key in arrays)
    return {"auxiliary": False} if name in WITH_AUXILIARIES and not has else {}


def _scheme(name: str, arrays: Mapping[str, Any], arguments: dict[str, Any]) -> str:
    """Of the schemes that have the network, the one with the most names of the file."""
    schemes = schemes_of(name)
    if len(schemes) < 2:
        return schemes[0] if schemes else ""
    paths = _leaves(name, _SOME_CLASSES, arguments)
    return max(schemes, key=lambda s: len(arrays.keys() & {*keys_of(name, paths, s).values()}))


def _looks_like(named: str, arrays: Mapping[str, np.ndarray]) -> str:
    """`; the weights look like ...` where they agree with another network than the named one.

    The family is found by names without their numbers, so that only its own networks are traced.
    """
    if agreement(named, arrays) >= _ALIKE:
        return ""
    families: dict[Any, list[str]] = {}
    for name in list_models():
        if schemes := schemes_of(name):
            families.setdefault((MODELS[name].module, *schemes), []).append(name)
    patterns = _patterns(arrays)

    def overlap(family: list[str]) -> float:
        theirs = _patterns(_expected(family[0], arrays))
        return len(patterns & theirs) / len(patterns | theirs)

    family = max(families.values(), key=overlap)
    alike = (name for name in family if agreement(name, arrays) >= _ALIKE)
    found = next(alike, None)
    return f"; the weights look like those of {found}" if found else ""


def _patterns(keys: Mapping[str, Any]) -> set[str]:
    return {re.sub(r"\d+", "0", key) for key in keys}


def _expected(
    name: str, arrays: Mapping[str, np.ndarray], classes: int = _SOME_CLASSES
) -> dict[str, jax.ShapeDtypeStruct]:
    """Our leaves by the names of the scheme that the file is in."""
    arguments = _arguments(name, arrays)
    leaves, scheme = _leaves(name, classes, arguments), _scheme(name, arrays, arguments)
    return {key: leaves[path] for path, key in keys_of(name, leaves, scheme).items()}


def agreement(name: str, arrays: Mapping[str, np.ndarray]) -> float:
    """The share of names that are in both a network and a file, and of the same size."""
    if not schemes_of(name):
        return 0.0
    arrays = {key: arrays[of] for of, key in todays_names(name, arrays).items()}
    expected, other = (_expected(name, arrays, classes) for classes in (_SOME_CLASSES, 1))
    same = [
        key
        for key, leaf in expected.items()
        if key in arrays and (leaf.shape != other[key].shape or leaf.size == arrays[key].size)
    ]
    return len(same) / len(expected.keys() | arrays.keys())


def _leaves(
    name: str, classes: int, arguments: Mapping[str, Any]
) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Shapes of our variables by path, such as `params/conv1/conv/kernel`."""
    return _leaves_of(name, classes, tuple(sorted(arguments.items())))


# Tracing a network takes a quarter of a second, and a name is asked for up to four times.
@functools.lru_cache(maxsize=256)
def _leaves_of(
    name: str, classes: int, arguments: tuple[tuple[str, Any], ...]
) -> dict[str, jax.ShapeDtypeStruct]:
    variables = abstract_variables(
        create_model(name, classes, **dict(arguments)), (1, *usual_task(name)[0])
    )
    # Flax types its keys as tuples, which they are without `sep`.
    return cast(dict[str, jax.ShapeDtypeStruct], flatten_dict(variables, sep="/"))


def _logits(
    name: str, arrays: Mapping[str, np.ndarray], arguments: dict[str, Any], scheme: str
) -> int:
    """The number of classes of the weights, from the bias of the layer of logits.

    That layer is the first whose outputs differ between a network for one class and one for two.
    """
    leaves, more = (_leaves(name, classes, arguments) for classes in (1, 2))
    keys = keys_of(name, leaves, scheme)
    path = next(
        path
        for path, leaf in leaves.items()
        if leaf.shape != more[path].shape
        and path.endswith("/bias")
        and not keys[path].lower().startswith("aux")
    )
    if keys[path] not in arrays:
        raise ValueError(f"{name}: missing: {keys[path]}, which gives the number of classes")
    of_one, of_two = (tree[path].shape[0] for tree in (leaves, more))
    return 1 + (len(arrays[keys[path]]) - of_one) // (of_two - of_one)


def flattened_channels(name: str, module: str) -> int:
    """Feature maps of the volume that a fully connected layer flattens; 0 if it flattens none."""
    if module in ("aux1_fc1", "aux2_fc1"):
        return 128
    if module == "boxes/fc6":
        return 256
    if module == "fc6" and name.startswith(("alexnet", "vgg")):
        return 256 if name.startswith("alexnet") else 512
    return 0


def _turned(
    value: np.ndarray, shape: tuple[int, ...], flattened: int, transposed: bool
) -> np.ndarray | None:
    """The array in our layout, or None if it does not fit `shape` in any layout."""
    if flattened and value.ndim == 2 and value.shape[1] % flattened == 0:
        # [K, C * positions] -> [positions * C, K]
        value = (
            value.reshape(len(value), flattened, -1).transpose(2, 1, 0).reshape(-1, len(value)).T
        )
    if value.ndim == 4 and transposed:
        value = value.transpose(2, 3, 0, 1)[::-1, ::-1]
    elif value.ndim == len(shape) > 2:
        value = value.transpose(*range(2, value.ndim), 1, 0)
    elif value.ndim == 4 and len(shape) == 2:  # a convolution of a whole map, linear here
        value = value.transpose(2, 3, 1, 0).reshape(-1, len(value))
    elif value.ndim == 2 and len(shape) == 4:  # a linear layer that is a 1x1 convolution here
        value = value.T.reshape(1, 1, *value.T.shape)
    elif value.ndim == 2:
        value = value.T
    elif value.ndim > 2 and len(shape) == 1:  # one number for each feature map
        value = value.reshape(-1)
    # A scalar would become an array of one number.
    return np.ascontiguousarray(value).reshape(shape) if value.shape == shape else None
