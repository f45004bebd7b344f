"""Build the network that a config names."""

from typing import Any

from jaxconv.config import TYPES, check_type
from jaxconv.errors import UserError, in_words
from jaxconv.models import create_model, model_arguments
from jaxconv.own import is_own, wrong
from jaxconv.values import plain


def build_model(config: Any, num_classes: int, axis_name: str | None = None) -> Any:
    """Build the network that `config`, the `model` part of a config, names.

    Raises:
      UserError: the network or an argument is unknown, or a value does not fit.
    """
    kwargs = config.kwargs.to_dict()
    try:
        defaults = model_arguments(config.name)
        for key, value in kwargs.items():
            default = plain(defaults.get(key))
            if isinstance(default, tuple) and type(value) in (int, float):
                value = kwargs[key] = (value,)
            # Nothing says what an empty tuple holds: numbers, or names of maps.
            names = default == () and isinstance(value, tuple) and {*map(type, value)} == {str}
            if type(default) in TYPES and not names:
                check_type(f"config.model.kwargs.{key}", value, default)
        model = create_model(
            config.name, num_classes, config.dtype, axis_name, config.norm_groups, **kwargs
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"config.model: {error}") from error
    except Exception as error:  # a custom network may raise anything
        if not is_own(config.name):
            raise
        raise wrong(config.name, "config.model.name", f"fails: {in_words(error)}") from error
    if not all(hasattr(model, method) for method in ("init", "apply")):
        raise wrong(config.name, "config.model.name", f"returned {type(model).__name__}")
    return model
