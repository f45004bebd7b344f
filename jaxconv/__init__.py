"""jaxconv: train, evaluate and inspect convolutional networks in JAX and Flax."""

from typing import TYPE_CHECKING

from jaxconv import arithmetic, layers, lazy, moved
from jaxconv.compiling import compiler_options
from jaxconv.feature_maps import FeatureMap, feature_info, features_at
from jaxconv.models import (
    ModelInfo,
    features,
    from_text,
    list_models,
    model_arguments,
    model_info,
)
from jaxconv.models.bridge import from_nnx
from jaxconv.summary import Summary, summarize
from jaxconv.train.state import TrainState, create_state
from jaxconv.train.step import make_eval_step, make_train_step
from jaxconv.version import __version__
from jaxconv.weights.create import create_model
from jaxconv.weights.torchvision import load_torchvision

if TYPE_CHECKING:  # `as` marks a name as public
    from jaxconv.config import default_config as default_config
    from jaxconv.config import load_config as load_config
    from jaxconv.evaluation.tables import evaluate as evaluate
    from jaxconv.look.opened import open_run as open_run
    from jaxconv.predict import predict as predict
    from jaxconv.run import train as train

moved.install()

# What is loaded when it is first used, so that `import jaxconv` stays quick and needs little. For
# the same reason `from jaxconv import *` leaves it out. `jaxconv.train` and `jaxconv.predict` are
# modules that can be called, see lazy.py.
_LATER = {
    "config": "jaxconv.config",
    "data": "jaxconv.data",
    "default_config": "jaxconv.config:default_config",
    "evaluate": "jaxconv.evaluation.tables:evaluate",
    "evaluation": "jaxconv.evaluation",
    "inspect": "jaxconv.inspect",
    "load_config": "jaxconv.config:load_config",
    "look": "jaxconv.look",
    "open_run": "jaxconv.look.opened:open_run",
    "predict": "jaxconv.predict",
    "report": "jaxconv.report",
    "tasks": "jaxconv.tasks",
    "weights": "jaxconv.weights",
}
__getattr__ = lazy.names_of(__name__, _LATER)

__all__ = [
    "FeatureMap",
    "ModelInfo",
    "Summary",
    "TrainState",
    "__version__",
    "arithmetic",
    "compiler_options",
    "create_model",
    "create_state",
    "feature_info",
    "features",
    "features_at",
    "from_nnx",
    "from_text",
    "layers",
    "list_models",
    "load_torchvision",
    "make_eval_step",
    "make_train_step",
    "model_arguments",
    "model_info",
    "summarize",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
