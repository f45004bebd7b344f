"""The network's arrays out of what training scripts save, by name alone."""

import logging
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxconv.weights.wrappers import unwrap

NET = {"conv1.weight": np.ones(3), "layer1.0.bn1.bias": np.ones(2), "fc.bias": np.zeros(1)}
OPTIMIZER = {"state": {0: {"step": np.array(1.0), "exp_avg": np.ones(3)}}, "param_groups": [{}]}


def before(prefix, names=NET):
    return {prefix + name: value for name, value in names.items()}


def mmpretrain():
    return {("head." if k.startswith("fc") else "backbone.") + k: v for k, v in NET.items()}


@pytest.mark.parametrize(
    ("state", "where"),
    [
        (NET, ""),
        ({"state_dict": NET, "epoch": 3, "arch": "resnet18"}, "state_dict"),
        ({"model_state_dict": NET, "loss": 0.1}, "model_state_dict"),
        ({"net": NET, "acc": 93.0, "epoch": 3}, "net"),
        (before("module."), "module"),
        (before("_orig_mod.module."), "_orig_mod.module"),
        (before("module._orig_mod."), "module._orig_mod"),
        ({"state_dict": before("model."), "pytorch-lightning_version": "2.4"}, "state_dict.model"),
        ({"state_dict": before("model._orig_mod.")}, "state_dict.model._orig_mod"),
        ({"state_dict": mmpretrain(), "meta": {"epoch": 3}}, "state_dict.backbone+head"),
        ({"model_ema": {"n_averaged": np.array(5), **before("module.")}}, "model_ema.module"),
        ({"module": NET, "optimizer": None, "global_steps": 3}, "module"),
        ({"model": {"model": before("module.")}}, "model.model.module"),
        (dict.fromkeys(["args", "config"]) | {"model": NET}, "model"),
        # A part that was compiled or wrapped alone.
        ({name.replace("layer1.", "layer1._orig_mod."): v for name, v in NET.items()}, ""),
        ({name.replace("layer1.0", "layer1.module.0"): v for name, v in NET.items()}, ""),
    ],
)
def test_what_scripts_save_is_unwrapped(state, where, caplog):
    found, place = unwrap(state)
    assert found.keys() == NET.keys() and place == where
    assert all(found[name] is value for name, value in NET.items())
    assert not caplog.records  # nothing was passed over


def test_a_head_without_a_backbone_is_no_wrapper(caplog):
    names = before("stem.") | before("head.")  # as timm names its own networks
    assert unwrap(names) == (names, "") and not caplog.records


AVERAGED = {name: value + 1 for name, value in NET.items()}


@pytest.mark.parametrize(
    ("state", "raw", "averaged"),
    [
        ({"state_dict": NET, "state_dict_ema": AVERAGED}, "state_dict", "state_dict_ema"),
        (
            {"model": NET, "model_ema": {"n_averaged": np.array(5), **before("module.", AVERAGED)}},
            "model",
            "model_ema",
        ),
        (
            {"state_dict": {**before("model."), **before("model_ema.module.", AVERAGED)}},
            "state_dict.model",
            "state_dict.model_ema",
        ),
    ],
)
def test_of_several_the_taken_one_is_said_and_another_can_be_chosen(state, raw, averaged, caplog):
    caplog.set_level(logging.INFO, "jaxconv")
    for order in (state, dict(reversed(state.items()))):
        caplog.clear()
        assert unwrap(order)[0]["fc.bias"] is NET["fc.bias"]
        (line,) = [record.getMessage() for record in caplog.records]
        assert line == (
            f"took {raw} (3 arrays), passed over {averaged} (3 arrays); "
            f"--weights_key={averaged} takes that"
        )
    caplog.clear()
    found, where = unwrap(state, averaged)
    np.testing.assert_array_equal(found["fc.bias"], AVERAGED["fc.bias"])
    assert where.startswith(averaged) and raw in caplog.text and "takes that" not in caplog.text


def test_other_arrays_are_said_without_a_hint(caplog):
    caplog.set_level(logging.INFO, "jaxconv")
    unwrap({"model": NET, "optimizer": OPTIMIZER, "best_acc": np.array(0.9)})
    assert [record.getMessage() for record in caplog.records] == [
        "took model (3 arrays), passed over optimizer (1 array)"
    ]


@pytest.mark.parametrize(
    ("state", "key", "message"),
    [
        ([1, 2], "", "holds list, not a state dict"),
        ({"epoch": 3}, "", "holds dict, not a state dict"),
        (np.ones(3), "model", "no such dictionary"),
        ({"model": NET}, "modle", "did you mean 'model'.; it has model$"),
        (NET, "model", "it has conv1, layer1, fc$"),
        ({"backbone": NET, "head": NET}, "", "two arrays are called conv1.weight, fc.bias, "),
    ],
)
def test_what_cannot_be_unwrapped(state, key, message):
    with pytest.raises(ValueError) as error:
        unwrap(state, key)
    assert re.search(message, str(error.value)), error.value


@given(st.lists(st.sampled_from(["state_dict", "model", "module", "_orig_mod", "net"]), max_size=5))
def test_any_nesting_of_dictionaries_and_prefixes(wrappers):
    nested, prefixed = dict(NET), dict(NET)
    for name in reversed(wrappers):
        nested, prefixed = {name: nested}, before(f"{name}.", prefixed)
    for state in (nested, prefixed):
        found, where = unwrap(state)
        assert found == NET and where == ".".join(wrappers)
