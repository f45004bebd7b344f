"""jaxconv: train, evaluate and inspect convolutional networks in JAX and Flax."""

from typing import TYPE_CHECKING

from jaxconv import lazy, moved
from jaxconv.version import __version__

if TYPE_CHECKING:  # `as` marks a name as public
    from jaxconv import arithmetic as arithmetic
    from jaxconv import layers as layers
    from jaxconv.compiling import compiler_options as compiler_options
    from jaxconv.config import default_config as default_config
    from jaxconv.config import load_config as load_config
    from jaxconv.evaluation.tables import evaluate as evaluate
    from jaxconv.feature_maps import FeatureMap as FeatureMap
    from jaxconv.feature_maps import feature_info as feature_info
    from jaxconv.feature_maps import features_at as features_at
    from jaxconv.look.opened import open_run as open_run
    from jaxconv.models import ModelInfo as ModelInfo
    from jaxconv.models import features as features
    from jaxconv.models import from_text as from_text
    from jaxconv.models import list_models as list_models
    from jaxconv.models import model_arguments as model_arguments
    from jaxconv.models import model_info as model_info
    from jaxconv.models.bridge import from_nnx as from_nnx
    from jaxconv.predict import predict as predict
    from jaxconv.run import train as train
    from jaxconv.summary import Summary as Summary
    from jaxconv.summary import summarize as summarize
    from jaxconv.train.state import TrainState as TrainState
    from jaxconv.train.state import create_state as create_state
    from jaxconv.train.step import make_eval_step as make_eval_step
    from jaxconv.train.step import make_train_step as make_train_step
    from jaxconv.weights.create import create_model as create_model
    from jaxconv.weights.torchvision import load_torchvision as load_torchvision

moved.install()

# What the names of the package are. Each is loaded when it is first used, so that
# `import jaxconv` is quick, and `jaxconv doctor` works where another package cannot be imported.
# `jaxconv.train` and `jaxconv.predict` are modules that can be called, see lazy.py.
_NEED_JAX = {
    "FeatureMap": "jaxconv.feature_maps:FeatureMap",
    "ModelInfo": "jaxconv.models:ModelInfo",
    "Summary": "jaxconv.summary:Summary",
    "TrainState": "jaxconv.train.state:TrainState",
    "arithmetic": "jaxconv.arithmetic",
    "compiler_options": "jaxconv.compiling:compiler_options",
    "create_model": "jaxconv.weights.create:create_model",
    "create_state": "jaxconv.train.state:create_state",
    "feature_info": "jaxconv.feature_maps:feature_info",
    "features": "jaxconv.models:features",
    "features_at": "jaxconv.feature_maps:features_at",
    "from_nnx": "jaxconv.models.bridge:from_nnx",
    "from_text": "jaxconv.models:from_text",
    "layers": "jaxconv.layers",
    "list_models": "jaxconv.models:list_models",
    "load_torchvision": "jaxconv.weights.torchvision:load_torchvision",
    "make_eval_step": "jaxconv.train.step:make_eval_step",
    "make_train_step": "jaxconv.train.step:make_train_step",
    "model_arguments": "jaxconv.models:model_arguments",
    "model_info": "jaxconv.models:model_info",
    "summarize": "jaxconv.summary:summarize",
}
# These need the extra [train]; `from jaxconv import *` leaves them out.
_NEED_MORE = {
    "default_config": "jaxconv.config:default_config",
    "evaluate": "jaxconv.evaluation.tables:evaluate",
    "load_config": "jaxconv.config:load_config",
    "open_run": "jaxconv.look.opened:open_run",
}
_LATER = lazy.submodules_of(__name__) | _NEED_JAX | _NEED_MORE
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
