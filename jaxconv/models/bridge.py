"""Our networks in NNX programs: a module of `flax.nnx.bridge.ToNNX` and what it wraps."""

import sys
from typing import Any

import flax.linen as nn

_TO_LINEN = "{0} is an NNX module, and this takes a Linen module and its variables. {1}"
_BRIDGED = "Get them with `module, variables = jaxconv.from_nnx(model)`"
_NATIVE = (
    "Only what flax.nnx.bridge.ToNNX wraps can be taken out again (jaxconv.from_nnx); layers of "
    "other NNX modules have no names to look them up by"
)


def from_nnx(model: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The Linen module inside a module of `flax.nnx.bridge.ToNNX`, and its variables as they are.

    For `jaxconv.features`, `jaxconv.inspect` and anything else that takes a Linen module.

    Raises:
      TypeError: it is not such a module.
      ValueError: it has no variables yet.
    """
    module, variables = unwrapped(model), {}
    if module is model:
        raise TypeError(f"from_nnx takes a module of flax.nnx.bridge.ToNNX, not {_kind(model)}")
    nnx = sys.modules["flax.nnx"]
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if not str(path[0]).startswith("to_nnx__"):
            tree = variables.setdefault(nnx.variable_name_from_type(type(variable)), {})
            for part in path[:-1]:
                tree = tree.setdefault(part, {})
            tree[path[-1]] = variable.get_value()
    if "params" not in variables:
        raise ValueError(
            "the module has no parameters yet: call its lazy_init(images, train=False)"
        )
    return module, variables


def linen(module: Any) -> Any:
    """The module itself, which must not be one of NNX.

    Raises:
      TypeError: it is; the message says what to do.
    """
    if _is_nnx(module):
        how = _NATIVE if unwrapped(module) is module else _BRIDGED
        raise TypeError(_TO_LINEN.format(_kind(module), how))
    return module


def unwrapped(module: Any) -> Any:
    """The Linen module inside one of `ToNNX`; any other module as it is."""
    return module.to_nnx__module if _is_nnx(module) and "to_nnx__module" in vars(module) else module


def _is_nnx(module: Any) -> bool:
    # A program with such a module has imported NNX already; others should not have to.
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(module, nnx.Module)


def _kind(model: Any) -> str:
    inner = unwrapped(model)
    return type(model).__name__ + (f" of {type(inner).__name__}" if inner is not model else "")
