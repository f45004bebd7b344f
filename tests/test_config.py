"""The config: overrides, types, nearest names, what may differ on resuming."""

import json
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxconv.checks import check_config
from jaxconv.config import default_config, differing_keys, flatten, group, load_config, set_key
from jaxconv.errors import UserError
from jaxconv.values import plain, with_plain_values


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optimizer.learning_rate", "0.05", 0.05),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("steps", "1e3", 1000),
        ("batch_size", "64", 64),
        ("data.source", "folder:/tmp/a=b", "folder:/tmp/a=b"),
        ("data.source", "123", "123"),
        ("augment.flip", "true", True),
        ("augment.flip", "False", False),
        ("data.mean", "0.49,0.48,0.45", (0.49, 0.48, 0.45)),
        ("data.mean", "(0.5,)", (0.5,)),
        ("data.mean", "0.5", (0.5,)),
        ("optimizer.schedule.boundaries", "32000,48000", (32000, 48000)),
        ("model.kwargs.filters", "8,16", (8, 16)),
    ],
)
def test_overrides(key, text, value):
    config = default_config()
    set_key(config, key, text)
    found = flatten(config)[key]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("optimizer.learning_rat", "1", "no such key, did you mean 'optimizer.learning_rate'"),
        ("optimiser.learning_rate", "1", "did you mean 'optimizer.learning_rate'"),
        ("learning_rate", "1", "did you mean 'optimizer.learning_rate'"),
        ("seed.x", "1", "no such key"),
        ("seed", "{[1]:2}", "must be a whole number"),
        (
            "batch_size",
            "many",
            "--config.batch_size is 'many'; it must be a whole number, such as 128",
        ),
        ("batch_size", "1.5", "must be a whole number"),
        ("augment.flip", "2", "must be True or False"),
        ("optimizer.learning_rate", "True", "must be a number"),
        ("data.mean", "a b", r"is \('a b',\); it must be numbers separated by commas, such as 0.5"),
        ("optimizer", "1", r"is a group of keys \(.*learning_rate.*\); set one of them"),
    ],
)
def test_wrong_overrides_are_explained(key, text, message):
    config = default_config()
    with pytest.raises(UserError, match=message):
        set_key(config, key, text)


def valid(**changes):
    config = default_config()
    config.steps = 10
    for key, text in changes.items():
        set_key(config, key.replace("__", "."), text)
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "-1"}, "config.seed is -1; it must be between 0 and 4294967295"),
        ({"steps": "3000000000000"}, "config.steps is 3000000000000; it must be less than"),
        ({"seed": "4294967295", "ensemble__size": "2"}, "it must be between 0 and 4294967294"),
        (
            {"optimizer__schedule__warmup_steps": "3000000000000"},
            "warmup_steps is 3000000000000; it must be less than",
        ),
        ({"optimizer__schedule__boundaries": "5,3000000000000"}, "steps in ascending order"),
        (
            {"optimizer__schedule__factor": "-0.1"},
            "config.optimizer.schedule.factor is -0.1; it must be more than 0",
        ),
        ({"epochs": "1e999"}, "config.epochs is inf; it must be finite"),
        ({"steps": "0"}, "exactly one of them must be more than 0"),
        ({"epochs": "2"}, "exactly one of them"),
        ({"batch_size": "0"}, "config.batch_size is 0; it must be at least 1"),
        ({"parallel": "pjit"}, "config.parallel is 'pjit', did you mean 'jit'"),
        ({"model__dtype": "float64"}, "must be one of float32, bfloat16, float16"),
        ({"optimizer__schedule__name": "cosin"}, "did you mean 'cosine'"),
        ({"optimizer__schedule__name": "step"}, "the schedule 'step' needs steps"),
        ({"optimizer__schedule__boundaries": "5,3"}, "steps in ascending order"),
        ({"optimizer__momentum": "1"}, "config.optimizer.momentum is 1.0; it must be less than 1"),
        ({"optimizer__learning_rate": "nan"}, "must be a number"),
        ({"data__mean": "()"}, "config.data.mean is empty"),
        ({"data__mean": "0.5,1e999"}, r"config.data.mean is \(0.5, inf\); it must be finite"),
        ({"data__std": "0"}, "every standard deviation must be more than 0"),
        ({"loss__label_smoothing": "-0.1"}, "must be at least 0"),
        (
            {"augment__random_resized_crop__scale": "0.5,0.1"},
            r"scale is \(0.5, 0.1\); it must be two numbers in ascending order",
        ),
        ({"augment__random_resized_crop__scale": "0.5"}, "must be two numbers"),
        ({"augment__random_resized_crop__ratio": "()"}, "must be two numbers"),
        ({"augment__scale_jitter": "256.5,512"}, "must be whole numbers, such as 256,512"),
        (
            {"augment__scale_jitter": "256,512", "augment__random_resized_crop__scale": "0.08,1"},
            "set only one of them",
        ),
        (
            {"augment__scale_jitter": "256,512", "augment__pad_crop": "4"},
            "both scale_jitter and pad_crop",
        ),
        (
            {"augment__randaugment__layers": "2", "augment__trivial": "True"},
            "both randaugment.layers and trivial",
        ),
        ({"augment__randaugment__space": "timn"}, "did you mean 'timm'"),
        (
            {"augment__randaugment__level": "9"},
            "config.augment.randaugment.level is 9.0; it must be between 0 and 1",
        ),
        ({"augment__erasing__area": "0.3,0.1"}, "must be two numbers in ascending order"),
        ({"augment__colour_jitter__hue": "0.6"}, "must be between 0 and 0.5"),
        ({"augment__mixup": "-1"}, "must be between 0 and 100"),
        (
            {"augment__repeats": "3"},
            "config.batch_size is 128; it must be divisible by config.augment.repeats, 3",
        ),
        ({"loss__name": "hinge"}, "must be one of softmax, binary"),
        ({"loss__threshold": "0.2"}, "it applies to the loss 'binary'"),
        ({"optimizer__name": "adam"}, "did you mean 'adamw'"),
        ({"optimizer__epsilon": "0"}, "config.optimizer.epsilon is 0.0; it must be more than 0"),
        ({"optimizer__clip_norm": "-1"}, "must be at least 0"),
        ({"ema__decay": "1"}, "config.ema.decay is 1.0; it must be less than 1"),
        ({"checkpoint__metric": "eval/top2"}, "did you mean 'eval/top"),
    ],
)
def test_values_out_of_range_are_explained(changes, message):
    with pytest.raises(UserError, match=message):
        check_config(valid(**changes))
    check_config(valid())


def test_groups_have_their_shape():
    config = valid()
    config.optimizer.groups.first = group("conv1", learning_rate=1)
    check_config(config)
    set_key(config, "optimizer.groups.first.learning_rate", "0.5")
    for wrong in (group(3), group("x", learning_rate="a"), group("x", frozen="yes")):
        config.optimizer.groups.first = wrong
        with pytest.raises(UserError, match="config.optimizer.groups.first.* it must be"):
            check_config(config)
    config.optimizer.groups.first = group("conv1")
    config.optimizer.groups.last = {"pattern": "x"}
    with pytest.raises(
        UserError, match="config.optimizer.groups.last must be jaxconv.config.group"
    ):
        check_config(config)


def test_every_key_has_a_type_that_flags_can_set():
    for key, value in flatten(default_config()).items():
        assert type(value) in (bool, int, float, str, tuple), key


def experiment(tmp_path, body):
    path = tmp_path / "experiment.py"
    path.write_text(f"from jaxconv.config import default_config\n{body}\n")
    return str(path)


def test_experiment_files(tmp_path):
    path = experiment(
        tmp_path,
        "def get_config(size='8'):\n  c = default_config()\n  c.batch_size = int(size)\n  return c",
    )
    assert load_config(path).batch_size == 8
    config = load_config(f"{path}:16", ["seed=3", "model.kwargs.filters=4,8"])
    assert (config.batch_size, config.seed, config.model.kwargs.filters) == (16, 3, (4, 8))
    # Another network leaves the arguments of the experiment's own behind, not those of the command
    # line.
    other = load_config("experiments/xo.py", ["model.kwargs.units=1,1", "model.name=resnet18"])
    assert other.model.kwargs.to_dict() == {"units": (1, 1)}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def get_config():\n  c = default_config()\n  c.optimizer.learning_rat = 1\n  return c",
            "line 4: AttributeError: .*learning_rate",
        ),
        (
            "def get_config():\n  c = default_config()\n  c.batch_size = 'x'\n  return c",
            "line 4: TypeError",
        ),
        ("def get_config():\n  return 1 / 0", "line 3: ZeroDivisionError: division by zero"),
        ("def get_config(:", "SyntaxError"),
        ("x = 1", ": a config file must define get_config"),
        ("def get_config():\n  return {}", "get_config.. returned dict"),
    ],
)
def test_errors_in_experiment_files_name_the_line(tmp_path, body, message):
    with pytest.raises(UserError, match=message):
        load_config(experiment(tmp_path, body))
    with pytest.raises(UserError, match="file 'nothing.py' not found"):
        load_config("nothing.py")


def test_what_may_differ_on_resuming():
    old = flatten(valid(steps="10"))

    def differing(**changes):
        return differing_keys(old, flatten(valid(**changes)))

    assert (
        differing(
            parallel="pmap",
            log__every="7",
            log__tensorboard="False",
            checkpoint__keep="9",
            steps="20",
        )
        == []
    )
    assert differing(optimizer__learning_rate="0.3", seed="1") == [
        "optimizer.learning_rate",
        "seed",
    ]
    assert differing(model__kwargs__filters="8,8") == ["model.kwargs.filters"]
    assert differing(optimizer__schedule__name="cosine", steps="20") == [
        "optimizer.schedule.name",
        "steps",
    ]


BASE = """
from jaxconv.config import default_config
def get_config(seed="1"):
    config = default_config()
    config.seed = int(seed)
    return config
"""


def test_a_config_imports_its_neighbours(tmp_path):
    """At its top and in get_config; an edited neighbour is read anew, and none is left behind."""
    import sys

    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "late.py").write_text("SIZE = 8")
    path = tmp_path / "mine.py"
    path.write_text(
        "from base import get_config as base\ndef get_config():\n  import late\n  c = base('3')\n"
        "  c.batch_size = late.SIZE\n  return c\n"
    )
    assert (load_config(path).seed, load_config(path).batch_size) == (3, 8)
    (tmp_path / "late.py").write_text("SIZE = 16")
    (tmp_path / "base.py").write_text(BASE.replace("int(seed)", "10 * int(seed)"))
    assert (load_config(path).seed, load_config(path).batch_size) == (30, 16)
    assert not {"base", "late"} & sys.modules.keys() and str(tmp_path) not in sys.path
    assert not list(tmp_path.rglob("__pycache__"))


@pytest.mark.parametrize("folder", ["day_12:30", "a.py:b", "with space", "100%"])
def test_colons_and_spaces_in_the_path_of_a_config(tmp_path, folder):
    (tmp_path / folder).mkdir()
    path = tmp_path / folder / "base.py"
    path.write_text(BASE)
    assert load_config(path).seed == 1 and load_config(f"{path}:7").seed == 7
    assert load_config(f"{path}".replace(":", "%3A").replace(" ", "%20") + ":7").seed == 7


def test_a_config_without_the_suffix_is_not_found(tmp_path):
    with pytest.raises(UserError, match="file 'a.py' not found"):
        load_config("a.py:small")
    with pytest.raises(UserError, match="file 'a:small' not found"):
        load_config("a:small")


def test_numbers_of_numpy_and_jax_become_python_s(tmp_path):
    import jax.numpy as jnp
    import numpy as np
    from ml_collections import ConfigDict

    config = default_config()
    config.optimizer.learning_rate = 0.1 * np.sqrt(np.float64(4))
    config.batch_size, config.seed = np.int32(4), jnp.int32(3)
    config.optimizer.l2, config.augment.flip = jnp.float32(0.5), np.bool_(True)
    config.data.mean, config.data.std = np.array([0.5, 0.25]), [0.5, 1.0]
    config.model.kwargs = {"widths": [4, 8], "inner": {"deep": np.arange(2)}}
    config.model.kwargs.more = ConfigDict({"x": np.float32(2.0)})
    config.data.source = Path("somewhere")
    flat = flatten(config)
    wanted = {
        "optimizer.learning_rate": 0.2,
        "batch_size": 4,
        "seed": 3,
        "optimizer.l2": 0.5,
        "augment.flip": True,
        "data.mean": (0.5, 0.25),
        "data.std": (0.5, 1.0),
        "model.kwargs.widths": (4, 8),
        "model.kwargs.inner.deep": (0, 1),
        "model.kwargs.more.x": 2.0,
        "data.source": "somewhere",
    }
    assert {key: flat[key] for key in wanted} == wanted
    assert [type(flat[key]) for key in wanted] == [type(value) for value in wanted.values()]
    check_config(valid(steps="3"))
    foreign = ConfigDict({"a": np.int64(3), "t": {"x": np.float32(0.5), "l": [1]}}).lock()
    plain = with_plain_values(foreign)
    assert plain.to_dict() == {"a": 3, "t": {"x": 0.5, "l": (1,)}} and plain.is_locked


@pytest.mark.parametrize("value", [jax.nn.relu, {"x": float("nan")}, (1, {2}), float("inf")])
def test_what_config_json_cannot_hold(value):
    config = valid(steps="3")
    config.model.kwargs.activation = value
    with pytest.raises(UserError, match="config.model.kwargs.activation.* holds .*"):
        check_config(config)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
        lambda items: st.lists(items, max_size=3),
    )
)
def test_a_plain_value_is_the_same_after_json(value):
    once = plain(value)
    assert plain(once) == once == plain(json.loads(json.dumps(once)))


def test_a_misspelt_key_is_short_and_names_the_nearest():
    config = default_config()
    for change in (
        lambda: setattr(config, "optimiser", "adam"),
        lambda: config.optimiser.name,
        lambda: setattr(config.optimizer, "learning_rat", 0.1),
    ):
        with pytest.raises(AttributeError, match="did you mean '(optimizer|learning_rate)'") as why:
            change()
        assert len(str(why.value)) < 100
