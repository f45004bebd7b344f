"""jaxconv: convolutional networks in JAX and Flax, trained, measured and looked into with one command."""

from jaxconv import arithmetic, layers
from jaxconv.models import create_model, list_models, model_arguments
from jaxconv.train.state import TrainState, create_state
from jaxconv.train.step import make_eval_step, make_train_step
from jaxconv.version import __version__

__all__ = [
    "TrainState",
    "__version__",
    "arithmetic",
    "create_model",
    "create_state",
    "layers",
    "list_models",
    "make_eval_step",
    "make_train_step",
    "model_arguments",
]
