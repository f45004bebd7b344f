"""Any config trains a step, or is rejected with a one-line error before the run begins."""

import math
import random

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jaxconv.checks import CHOICES, check_config
from jaxconv.config import flatten
from jaxconv.errors import UserError
from jaxconv.run import train
from tests.conftest import tiny_config

# Keys that need other files or machines, take too long here, or are tested elsewhere.
LEFT_ALONE = (
    "data.source",
    "data.tfds",
    "data.audio",
    "data.text",
    "data.toy",
    "data.folder",
    "data.xo.size",
    "data.xo.train_examples",
)
LEFT_ALONE += (
    "log.report",
    "data.xo.test_examples",
    "steps",
    "epochs",
    "profile",
    "compilation_cache",
    "deterministic",
    "model.init_from",
    "ensemble.by",
)
SMALL_NETWORKS = (
    "chain",
    "text:conv3-4 relu maxpool2 fc",
    "text:conv3-4 bn relu globalpool fc",
    "text:conv3-4 relu dropout0.5 fc",
)
BAD_NETWORKS = (
    "lenet5",
    "optax.sgd",
    "text:conv3-4 globalpool",
    "text:conv3-",
    "text:",
    "nothing",
    "",
)
TEXTS = (
    "",
    "learning_rate:0.01,0.1",
    "bias",
    "train",
    "(",
    "a.py:b",
    "learning_rate:0.1",
    "momentum:0.5,1.5",
    "l2:0,0.2",
    "optax.sgd",
    "1:2",
)
TUPLES = (
    (),
    (0.5,),
    (1,),
    (1, 2),
    (20, 24),
    (0.5, 1.0),
    (0.5, 0.5),
    (1.0, 0.5),
    (0.0, 2.0),
    (0.5, 0.5, 0.5),
    (-1.0, 1.0),
    (math.inf,),
)
WHOLE = (-1, 0, 1, 2, 3, 8, 2**32 - 1, 2**40)
# Larger values would take long to compile, because the loops are unrolled on a CPU.
FEW = ("ensemble.size", "steps_per_call", "augment.randaugment.layers")
REAL = (-0.5, 0.0, 1e-8, 0.1, 0.5, 0.9, 1.0, 1.5, 8.0, math.inf, math.nan)


def values_for(key, example):
    """Values for a key: valid and invalid ones."""
    if key == "model.name":
        return (*SMALL_NETWORKS, *BAD_NETWORKS)
    if key in CHOICES:
        return (*CHOICES[key], "no such")
    if key in FEW:
        return (-1, 0, 2, 3)
    return {bool: (False, True), int: WHOLE, float: REAL, tuple: TUPLES, str: TEXTS}[type(example)]


def changed(changes):
    """A config of two steps, with the given changes."""
    config = tiny_config(steps=2, optimizer__schedule__warmup_steps=1, ensemble__by="vmap")
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        if key == "model.name":
            config.model.kwargs = {}
        place[last] = value
    return config


def passes(changes):
    try:
        check_config(changed(changes))
    except UserError:
        return False
    return True


VALUES = {
    key: [other for other in values_for(key, value) if other != value]
    for key, value in flatten(tiny_config()).items()
    if not key.startswith((*LEFT_ALONE, "model.kwargs."))
    and not (isinstance(value, str) and key.startswith("data."))
}
# Changes that look valid on their own; drawn separately, to test how they interact with each other
# and with the network.
LIKELY = {
    key: [value for value in values if value not in BAD_NETWORKS and passes({key: value})]
    for key, values in VALUES.items()
}


def draw_changes(seed):
    """Likely valid changes of two to six keys, and in half of the draws any value for one more."""
    draw = random.Random(seed)
    keys = draw.sample([key for key in VALUES if LIKELY[key]], draw.randint(2, 6))
    changes = {key: draw.choice(LIKELY[key]) for key in keys}
    if draw.random() < 0.5:
        key = draw.choice(list(VALUES))
        changes[key] = draw.choice(VALUES[key])
    return changes


# Drawn by a seed: hypothesis would make many of the individual draws nearly alike.
CHANGES = st.integers(0, 2**32 - 1).map(draw_changes)


def check(folder, changes):
    try:
        result = train(changed(changes), str(folder), devices=jax.devices()[:1])
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) > 10, str(error)
        # An invalid config is rejected before the run begins, so that a corrected one finds the
        # folder empty.
        assert error.exit_code == 1 or not (folder / "config.json").exists(), str(error)
        return
    assert result["examples"] == 30 and np.isfinite(result["loss"])


fuzzing = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
@settings(fuzzing, max_examples=12, phases=[Phase.generate])
@given(changes=CHANGES)
def test_some_configs_train_or_are_refused(tmp_path_factory, changes):
    check(tmp_path_factory.mktemp("fuzz"), changes)


@pytest.mark.full
@settings(fuzzing, max_examples=500, phases=[Phase.generate])
@given(changes=CHANGES)
def test_many_configs_train_or_are_refused(tmp_path_factory, changes):
    check(tmp_path_factory.mktemp("fuzz"), changes)
