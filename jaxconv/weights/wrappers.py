"""Out of a checkpoint, the names and arrays of the network: without the dictionaries that training
scripts keep it in, and without the prefixes that they give its names.

{"state_dict": {"model.conv1.weight": ...}, "optimizer": ...}  ->  {"conv1.weight": ...}

A dictionary in another is a prefix too: here it is `state_dict.model.`, so that one table holds
both.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jaxconv.errors import UserError, nearest, short, some
from jaxconv.weights.pickled import Unread

log = logging.getLogger(__name__)

# What is looked for, in this order; the parts of one line make the network together.
_WRAPPERS: tuple[tuple[str, ...], ...] = (
    ("state_dict",),  # PyTorch's ImageNet example, timm, Lightning, mmpretrain
    ("model_state_dict",),
    ("model_state",),
    ("model",),  # torchvision's references, DeiT; Lightning's `self.model`
    ("module",),  # DistributedDataParallel, AveragedModel, DeepSpeed
    ("_orig_mod",),  # torch.compile
    ("net",),
    ("network",),
    ("backbone", "head"),  # mmpretrain
    # Averages over the steps.
    ("model_ema",),  # torchvision's references, DeiT
    ("state_dict_ema",),  # timm
    ("ema_state_dict",),  # mmpretrain
    ("ema_model",),
    ("ema",),
)
# Beside these a `backbone` is a part of torchvision's segmentation and detection networks.
_BESIDE_A_BACKBONE = ("classifier.", "rpn.", "roi_heads.", "head.classification_head.")
# Wrappers of a part of the network, which can stand in the middle of a name.
_INSIDE = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# Arrays of other kinds: quantized, sparse, in parts on several machines; NumPy's, in a pickle.
_OTHER_TENSORS = (
    "torch._utils._rebuild",
    "torch.distributed.",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
)


def unwrap(state: Any, weights_key: str = "") -> tuple[dict[str, Any], str]:
    """The network's arrays by name, as they are (numpy, PyTorch's or `pickled.Tensor`), and where
    they were, such as `state_dict.model`. A line of log says what else there was.

    Args:
      state: what the file holds: dictionaries of dictionaries of arrays.
      weights_key: which of several dictionaries to take, such as `model_ema`; where it is empty,
        the first in the order of the table above.

    Raises:
      UserError: there is no such dictionary.
      ValueError: there are no arrays, or something that cannot be read.
    """
    names, where, passed = dict(_leaves(state)), "", {}
    if weights_key:
        names, where, passed = _take(names, "", (weights_key.strip("."),))
        if not names:
            raise UserError(
                f"--weights_key={weights_key}: the file has no such dictionary"
                f"{nearest(weights_key, passed)}; it has {some(list(passed)) or 'none'}"
            )
    while found := _wrapper(names):
        names, where, more = _take(names, where, found)
        passed |= more
    if not names and state != {}:
        raise ValueError(f"holds {short(type(state).__name__)}, not a state dict of arrays")
    _check_kinds(names)
    if passed:
        _say(where, names, passed, weights_key)
    return _joined([{_INSIDE.sub("", name): leaf} for name, leaf in names.items()]), where


def _leaves(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Arrays by dotted name, and what stands for a whole network or for another kind of tensor."""
    if isinstance(state, Unread) and (state.is_network() or state.named.startswith(_OTHER_TENSORS)):
        yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif hasattr(state, "shape"):
        yield name, state


def _wrapper(names: Mapping[str, Any]) -> tuple[str, ...]:
    """The line of the table that the names begin with, as far as it is there; or nothing."""
    firsts = {name.partition(".")[0] for name in names if "." in name}
    beside = any(name.startswith(_BESIDE_A_BACKBONE) for name in names)
    whole = {"backbone"} if beside else set()
    line = next((line for line in _WRAPPERS if line[0] in firsts - whole), ())
    return tuple(part for part in line if part in firsts)


def _take(
    names: Mapping[str, Any], where: str, parts: tuple[str, ...]
) -> tuple[dict[str, Any], str, dict[str, int]]:
    """The arrays below some of the prefixes, where they were, and the number of arrays below each
    of the others.
    """
    before = f"{where}." if where else ""
    taken, passed = [], {}
    for part in parts:
        start = f"{part}."
        below = {name[len(start) :]: leaf for name, leaf in names.items() if name.startswith(start)}
        taken.append(below or {part: names[part]} if part in names else below)
    for name, leaf in names.items():
        # A single number is a counter, such as `n_averaged`.
        if not name.startswith(tuple(f"{part}." for part in parts)) and getattr(leaf, "shape", 0):
            other = before + name.partition(".")[0]
            passed[other] = passed.get(other, 0) + 1
    return _joined(taken), before + "+".join(parts), passed


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for part in parts:
        if twice := joined.keys() & part.keys():
            raise ValueError(f"two arrays are called {some(sorted(twice))} without their prefixes")
        joined |= part
    return joined


def _check_kinds(names: Mapping[str, Any]) -> None:
    whole = [name for name, leaf in names.items() if isinstance(leaf, Unread)]
    if whole and names[whole[0]].is_network():
        raise ValueError(
            f"holds a whole network ({names[whole[0]].named}), pickled with the place of its code, "
            "not a state dict; where that code is, save its weights alone: "
            "torch.save(network.state_dict(), 'NEW.pth')"
        )
    if whole:
        raise ValueError(
            f"{some(whole)}: not a plain tensor ({names[whole[0]].named}); save the weights "
            "as dense floating point tensors, or NumPy's arrays with np.savez"
        )


def _say(where: str, names: Mapping[str, Any], passed: Mapping[str, int], weights_key: str) -> None:
    others = some([f"{name} ({_arrays(number)})" for name, number in passed.items()])
    known = {part for line in _WRAPPERS for part in line}
    choices = [name for name in passed if name.rpartition(".")[2] in known]
    hint = f"; --weights_key={choices[0]} takes that" if choices and not weights_key else ""
    taken = _arrays(sum(1 for leaf in names.values() if leaf.shape))
    log.warning("took %s (%s), passed over %s%s", where, taken, others, hint)


def _arrays(number: int) -> str:
    return f"{number:,} array{'s' if number > 1 else ''}"
