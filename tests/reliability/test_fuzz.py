"""Any config trains a step or is refused with one line."""

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxconv.checks import CHOICES
from jaxconv.config import flatten
from jaxconv.errors import UserError
from jaxconv.train.loop import train
from tests.conftest import tiny_config

# What would take other files, other machines or too long here, or asks for what is tested elsewhere.
LEFT_ALONE = (
    "data.source",
    "compilation_cache",
    "deterministic",
    "steps",
    "epochs",
    "model.init_from",
    "data.tfds",
    "data.audio",
    "data.text",
)
LEFT_ALONE += ("data.toy", "data.folder", "data.xo.train_examples", "data.xo.test_examples", "data.xo.size", "profile", "ensemble.by")
NETWORKS = (
    "chain",
    "lenet5",
    "resnet20_cifar",
    "text:conv3-4 relu maxpool2 fc",
    "text:conv3-4 bn relu globalpool",
    "nothing",
    "text:conv3-",
)
NUMBERS = (-1, 0, 1, 2, 3, 5, 8, 0.0, 0.1, 0.5, 0.9, 1.0, 1.5, 1e-8, -0.5, float("inf"), float("nan"))
TEXTS = ("", "train", "test", "no such", "a.py:b", "1:2")


def value_for(key, example):
    """Values for a key: good ones, and ones that cannot be."""
    if key == "model.name":
        return st.sampled_from(NETWORKS)
    if key in CHOICES:
        return st.sampled_from((*CHOICES[key], "no such"))
    if isinstance(example, bool):
        return st.booleans()
    if isinstance(example, int):
        return st.sampled_from([number for number in NUMBERS if isinstance(number, int)])
    if isinstance(example, float):
        return st.sampled_from([float(number) for number in NUMBERS])
    if isinstance(example, tuple):
        return st.lists(st.sampled_from((0.0, 0.1, 0.5, 1.0, 2.0, 20, 24)), max_size=3).map(tuple)
    return st.sampled_from(TEXTS)


EXAMPLES = {
    key: value
    for key, value in flatten(tiny_config()).items()
    if not key.startswith((*LEFT_ALONE, "model.kwargs.")) and not (isinstance(value, str) and key.startswith("data."))
}


@st.composite
def configs(draw):
    """Changes of one to five keys."""
    keys = draw(st.lists(st.sampled_from(sorted(EXAMPLES)), min_size=1, max_size=5, unique=True))
    return {key: draw(value_for(key, EXAMPLES[key])) for key in keys}


def check(folder, changes):
    config = tiny_config(steps=2)
    for key, value in changes.items():
        place, last = config, key
        while "." in last:
            first, last = last.split(".", 1)
            place = place[first]
        if key == "model.name":
            config.model.kwargs = {}
        place[last] = value
    try:
        result = train(config, str(folder), devices=jax.devices()[:1])
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) > 10
        return
    assert result["examples"] == 30 and np.isfinite(result["loss"])


@pytest.mark.slow
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(changes=configs())
def test_some_configs_train_or_are_refused(tmp_path_factory, changes):
    check(tmp_path_factory.mktemp("fuzz"), changes)


@pytest.mark.full
@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(changes=configs())
def test_many_configs_train_or_are_refused(tmp_path_factory, changes):
    check(tmp_path_factory.mktemp("fuzz"), changes)
