"""jaxconv: train, evaluate and inspect convolutional networks in JAX and Flax."""

from jaxconv import arithmetic, layers, moved
from jaxconv.feature_maps import FeatureMap, feature_info, features_at
from jaxconv.models import (
    ModelInfo,
    create_model,
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
from jaxconv.weights.torchvision import load_torchvision

moved.install()

__all__ = [
    "FeatureMap",
    "ModelInfo",
    "Summary",
    "TrainState",
    "__version__",
    "arithmetic",
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
