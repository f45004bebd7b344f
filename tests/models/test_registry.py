"""The whole registry: published parameter counts, stable paths, shapes, types and gradients.

Large networks are only traced with `eval_shape`, which allocates nothing.
"""

import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxconv
from jaxconv.models import MODELS, abstract_variables
from jaxconv.train.parallel import AXIS
from jaxconv.train.step import descending
from tests.conftest import ROOT, rarely
from tests.models.facts import BY_HAND, PRINTED, TIMM, TORCHVISION

# The smallest of each family, and another input size that it takes.
SMALLEST = {
    "chain": 20,
    "lenet5": 35,
    "alexnet": 199,
    "alexnet_2012": 199,
    "alexnet_torchvision": 100,
    "zfnet_base": 129,
    "vgg11": 49,
    "vgg11_bn": 49,
    "all_cnn_c": 27,
    "googlenet": 97,
    "googlenet_torchvision": 65,
    "resnet18": 65,
    "resnet50": 65,
    "resnet18_v2": 65,
    "resnet20_cifar": 33,
    "resnext50_32x4d": 65,
    "se_resnet50": 65,
    "densenet121": 65,
    "mobilenet_v1": 65,
    "mobilenet_v2": 65,
    "mobilenet_v3_small": 65,
    "efficientnet_b0": 65,
    "efficientnet_lite0": 65,
    "regnet_x_400mf": 65,
    "regnet_y_400mf": 65,
    "convnext_tiny": 65,
    "airbench94": 25,
    "squeezenet1_0": 65,
    "squeezenet1_1": 65,
    "mnasnet0_5": 65,
    "shufflenet_v2_x0_5": 65,
    "efficientnet_v2_s": 65,
    "inception_v3": 305,
    "resnet18d": 65,
    "resnetrs50": 65,
    "ecaresnet26t": 65,
    "skresnet18": 65,
    "convnextv2_atto": 65,
    "repvgg_a0": 65,
    "dm_nfnet_f0": 65,
    "darknet53": 65,
    "cspresnet50": 65,
    "xception": 65,
}
# Those whose blocks differ most: what holds for each family is tested on these, on all with --full.
SOME = {
    *("chain", "lenet5", "alexnet", "vgg11_bn", "googlenet", "resnet18", "resnet18_v2"),
    *("densenet121", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "airbench94"),
    *("shufflenet_v2_x0_5", "skresnet18", "repvgg_a0"),
}
V3_ROWS = tuple(jaxconv.model_arguments("mobilenet_v3_small")["rows"][row] for row in (0, 1, 4))
V2_STAGES = ((1, 1, 8, 1), (4, 2, 16, 1), (4, 1, 16, 1), (4, 2, 16, 1))
# Networks that are trained for one step here, and the image size; some have fewer units than
# published.
TRAINED = {
    "lenet5": (32, {}),
    "all_cnn_c": (27, {}),
    "resnet20_cifar": (16, {}),
    "resnet18_v2": (32, {"units": (1, 1, 1, 1)}),
    "se_resnet50": (32, {"units": (1, 1, 1, 1)}),
    "googlenet": (97, {"modules": "3a 4a 4d 5a"}),
    "densenet121": (32, {"layers": (2, 2, 2, 2)}),
    "mobilenet_v1": (32, {}),
    "mobilenet_v2": (32, {}),
    "mobilenet_v3_small": (32, {"rows": V3_ROWS}),
    "efficientnet_b0": (32, {"stages": ((1, 3, 1, 16, 1), (6, 5, 2, 24, 2))}),
    "regnet_y_400mf": (32, {"depth": 6}),
    "convnext_tiny": (32, {"blocks": (1, 1, 2, 1)}),
    "airbench94": (32, {"widths": (8, 16, 16)}),
    "squeezenet1_1": (32, {}),
    "mnasnet0_5": (32, {"units": (1,) * 7}),
    "shufflenet_v2_x0_5": (32, {"units": (1, 2, 1)}),
    "efficientnet_v2_s": (32, {"stages": V2_STAGES}),
    "inception_v3": (75, {"modules": "6a 7b", "auxiliary": False}),
    "resnetrs50": (32, {"units": (1, 1, 1, 1)}),
    "ecaresnet26t": (32, {"units": (1, 1, 1, 1)}),
    "skresnet18": (32, {"units": (1, 1, 1, 1)}),
    "convnextv2_atto": (32, {"blocks": (1, 1, 2, 1)}),
    "repvgg_a0": (32, {"layers": (1, 1, 2, 2, 1)}),
    "dm_nfnet_f0": (32, {"units": (1, 1, 1, 1), "widths": (128, 128, 256, 256), "group_width": 32}),
    "darknet53": (32, {"units": (1, 1, 1, 1, 1)}),
    "cspresnet50": (32, {"units": (1, 1, 1, 1)}),
    "xception": (32, {"blocks": ((64, 64), (64, 64, 64), (64, 128)), "pooled": (1, 3)}),
    "text:conv3-8/2 lrn relu maxpool3/2ceil conv3-16g2 bn relu globalpool dropout0.1 fc": (16, {}),
}


def classes_of(name):
    return jaxconv.models.usual_task(name)[1]


def variables_of(name, size=None, channels=None, num_classes=None, **arguments):
    *sides, depth = MODELS[name].input_size
    model = jaxconv.create_model(
        name, classes_of(name) if num_classes is None else num_classes, **arguments
    )
    shape = (1, *((size,) * len(sides) if size else sides), channels or depth)
    return model, abstract_variables(model, shape), jax.ShapeDtypeStruct(shape, jnp.float32)


def paths_of(variables):
    return sorted(
        "/".join(str(entry.key) for entry in path) + " " + "x".join(map(str, leaf.shape))
        for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]
    )


# Besides the smallest of each family, networks that many know; the others run with --full.
WELL_KNOWN = ("alexnet_2012", "vgg16", "googlenet", "resnet50", "densenet121", "mobilenet_v2")


def pace(name):
    often = name in SMALLEST or name in WELL_KNOWN
    return pytest.param(name, marks=() if often else pytest.mark.full)


@pytest.mark.parametrize("name", [*map(pace, MODELS)])
def test_parameters_and_their_paths(name):
    """Counts as published. Paths and shapes are public: a change is a new version of checkpoints,
    with a conversion.

    tests/models/paths.json is regenerated by `python -m tests.models.test_registry`.
    """
    _, variables, _ = variables_of(name)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    if name in (exact := TORCHVISION | TIMM | BY_HAND):
        assert count == exact[name]
    elif name in PRINTED:
        digits = len(str(PRINTED[name]).split(".")[1])
        assert round(count / 1e6, digits) == PRINTED[name]
    pinned = json.loads((ROOT / "tests/models/paths.json").read_text())
    assert hashlib.sha256("\n".join(paths_of(variables)).encode()).hexdigest() == pinned[name]


def test_googlenet_without_auxiliaries_is_the_paper_s_table():
    """The rows of Table 1 add up to 6.99 million weights and biases, not the lecture's "only 5
    million".
    """
    _, variables, _ = variables_of("googlenet", auxiliary=False)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 6_998_552


@pytest.mark.parametrize("name", SMALLEST)
def test_sizes_channels_classes_and_types(name):
    for size, channels, classes in ((None, None, 7), (SMALLEST[name], 4, 3)):
        model, variables, x = variables_of(name, size, channels, classes, dtype="bfloat16")
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        logits = jax.eval_shape(
            lambda v, x, model=model: model.apply(v, x, train=False), variables, x
        )
        assert logits.shape == (1, classes) and logits.dtype == jnp.float32


@pytest.mark.parametrize("name", rarely(SMALLEST, {*SMALLEST} - SOME))
def test_features(name):
    model, variables, x = variables_of(name, SMALLEST[name], num_classes=0)
    maps = jax.eval_shape(lambda v, x: jaxconv.features(model, v, x), variables, x)
    firsts = ("conv1", "conv1_1", "conv1a", "stem", "stage0", "stage1", "whiten")
    first = next(name for name in firsts if name in maps)
    assert maps[first].ndim == 4 and maps[first].shape[1] <= SMALLEST[name]
    pooled = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, x)
    assert pooled.shape[0] == 1 and pooled.ndim == 2 and pooled.dtype == jnp.float32
    if "pool" in maps:
        assert pooled.shape == maps["pool"].shape


def test_features_come_in_the_network_s_order():
    model = jaxconv.create_model("alexnet", 2)
    variables = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape), abstract_variables(model, (1, 67, 67, 3))
    )
    names = [
        name
        for name in jaxconv.features(model, variables, jnp.zeros((1, 67, 67, 3)))
        if not name.startswith(("relu", "dropout"))
    ]
    assert names == [
        "conv1",
        "pool1",
        "norm1",
        "conv2",
        "pool2",
        "norm2",
        "conv3",
        "conv4",
        "conv5",
        "pool3",
        "fc6",
        "fc7",
        "fc8",
    ]


# Their blocks are those of others, or take long to compile.
TRAINED_RARELY = {
    *("all_cnn_c", "cspresnet50", "darknet53", "ecaresnet26t", "efficientnet_v2_s", "googlenet"),
    *("inception_v3", "mnasnet0_5", "mobilenet_v1", "resnetrs50", "se_resnet50", "xception"),
    *("convnext_tiny", "convnextv2_atto", "dm_nfnet_f0", "efficientnet_b0", "mobilenet_v2"),
    *("regnet_y_400mf", "skresnet18"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", rarely(TRAINED, TRAINED_RARELY))
def test_one_step_lowers_the_loss(name):
    """A training step lowers the loss of its own batch, with finite gradients everywhere.

    The step length would lower the loss by a hundredth if the loss were linear.
    """
    size, overrides = TRAINED[name]
    channels = MODELS[name].input_size[-1] if name in MODELS else 3
    model = jaxconv.create_model(name, 4, **overrides)
    images = jax.random.normal(jax.random.key(1), (8, size, size, channels))
    batch, key = {"image": images, "label": jnp.arange(8) % 4}, jax.random.key(0)
    optimizer = descending(optax.identity())
    before = jax.jit(lambda key: jaxconv.create_state(model, optimizer, key, images[:1]))(key)
    rate = optax.constant_schedule(1.0)
    step = jax.jit(jaxconv.make_train_step(model, optimizer, learning_rate=rate))

    def step_of(state, rate):
        # The step number is part of dropout's key, so all three drop the same values.
        return step(
            state.replace(step=before.step, plateau=state.plateau.replace(scale=jnp.float32(rate))),
            batch,
            key,
        )

    _, first = step_of(before, 0.0)
    assert np.isfinite(first["grad_norm"]) and first["grad_norm"] > 0
    after, _ = step_of(before, 0.01 * first["loss"] / first["grad_norm"] ** 2)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(after.params))
    _, second = step_of(after, 0.0)
    assert second["loss"] < first["loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "arguments", "weights"),
    [
        pytest.param(
            *("googlenet", 97, {}, {"fc": 1.0, "aux1_fc2": 0.3, "aux2_fc2": 0.3}),
            marks=pytest.mark.full,
        ),
        ("inception_v3", 155, {"modules": "6e"}, {"fc": 1.0, "aux_fc": 0.4}),
    ],
)
def test_auxiliary_classifiers_have_their_weights(name, size, arguments, weights):
    """They change the trunk's gradients, and their own are those of a loss with these weights."""
    model = jaxconv.create_model(name, 4, **arguments)
    images = jax.random.normal(jax.random.key(1), (2, size, size, 3))
    optimizer, seen = optax.sgd(1.0), []

    def loss(logits, label):
        seen.append(logits.shape)
        return jnp.sum(logits, axis=-1)

    state = jax.jit(lambda key: jaxconv.create_state(model, optimizer, key, images))(
        jax.random.key(0)
    )
    step = jaxconv.make_train_step(model, optimizer, loss=loss)
    after, _ = jax.jit(step)(
        state, {"image": images, "label": jnp.zeros(2, jnp.int32)}, jax.random.key(0)
    )
    # The loss is the sum of the logits, so the gradient of each bias is the weight of its loss.
    for head, weight in weights.items():
        np.testing.assert_allclose(
            state.params[head]["bias"] - after.params[head]["bias"], weight, rtol=1e-5
        )
    assert len(seen) == len(weights)


def test_frozen_backbone():
    """BatchNorm in inference mode while gradients flow."""
    model = jaxconv.create_model("resnet20_cifar", 4, frozen_norm=True)
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    variables = model.init(jax.random.key(0), images, train=False)
    logits, changed = model.apply(variables, images, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(logits, model.apply(variables, images, train=False))
    jax.tree.map(
        np.testing.assert_array_equal,
        changed.get("batch_stats", variables["batch_stats"]),
        variables["batch_stats"],
    )

    def loss(p):
        apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        return jnp.sum(apply(variables | {"params": p}, images)[0] ** 2)

    gradients = jax.grad(loss)(variables["params"])
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients["conv1"]))


def test_jit_vmap_pmap_and_nnx():
    from flax import nnx

    model = jaxconv.create_model("resnet20_cifar", 4)
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    variables = model.init(jax.random.key(0), images, train=False)
    plain = model.apply(variables, images, train=False)
    apply = functools.partial(model.apply, train=False)
    np.testing.assert_allclose(jax.jit(apply)(variables, images), plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        jax.vmap(lambda x: apply(variables, x[None])[0])(images), plain, rtol=1e-4, atol=1e-5
    )
    over_devices = jax.pmap(apply, AXIS, in_axes=(None, 0), devices=jax.devices()[:2])
    np.testing.assert_allclose(
        over_devices(variables, images.reshape(2, 2, 16, 16, 3)).reshape(4, 4),
        plain,
        rtol=1e-4,
        atol=1e-5,
    )
    bridged = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(images, train=False)
    assert bridged(images, train=False).shape == (4, 4)
    several = jax.vmap(lambda key: model.init(key, images, train=False))(
        jax.random.split(jax.random.key(0), 3)
    )
    assert jax.vmap(apply, in_axes=(0, None))(several, images).shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("alexnet", 40, r"pool3: \(1 - 3\)/2 \+ 1"),
        ("lenet5", 20, r"conv3: \(2 - 5\)/1 \+ 1"),
        ("vgg16", 16, r"pool5: \(1 - 2\)/2 \+ 1"),
        ("googlenet", 64, r"aux1: \(4 - 5\)/3 \+ 1"),
        ("convnext_tiny", 3, r"stem: \(3 - 4\)/4 \+ 1"),
        ("inception_v3", 224, r"aux_conv1/conv: \(3 - 5\)/1 \+ 1"),
        ("squeezenet1_0", 6, r"conv1: \(6 - 7\)/2 \+ 1"),
    ],
)
def test_sizes_that_do_not_fit_name_the_layer(name, size, message):
    with pytest.raises(ValueError, match=message):
        variables_of(name, size)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet50", {"shortcut": "pol"}, "shortcut is 'pol', did you mean 'pool'"),
        ("resnet50", {"selective": (16, 8)}, "selective is .*; give ratio, divisor, split"),
        ("resnet50_v2", {"squeeze": 16}, "squeeze is 16, which would do nothing: version is 2"),
        ("resnet20_cifar", {"deep_stem": (8,)}, "deep_stem .* do nothing: small_images is True"),
        ("se_resnet50", {"eca": True}, "eca is True, which would do nothing: squeeze is 16"),
        ("repvgg_a0", {"plain": True, "norm": "group"}, "norm is 'group', which would do nothing"),
    ],
)
def test_settings_that_would_do_nothing(name, settings, message):
    with pytest.raises(ValueError, match=message):
        variables_of(name, 32, **settings)


def test_only_a_trained_repvgg_with_batch_norm_is_reparameterized():
    from jaxconv.models.repvgg import reparameterize

    for settings, why in (({"plain": True}, "is plain already"), ({"norm": "group"}, "norm='gr")):
        model, variables, _ = variables_of("repvgg_a0", 32, **settings)
        with pytest.raises(ValueError, match=why):
            reparameterize(model, variables)


def test_model_info():
    info = jaxconv.model_info("resnet50")
    assert (info.parameters, info.year, info.input_size) == (25_557_032, 2015, (224, 224, 3))
    assert info.errors == (23.87, 7.138) and "1512.03385" in info.paper
    assert jaxconv.list_models("vgg1?") == ["vgg11", "vgg13", "vgg16", "vgg19"]
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        jaxconv.model_info("resnet-50")


def test_regnet_widths_are_the_paper_s():
    """Table 9 of the appendix: RegNetY-400MF has w = [48, 104, 208, 440], d = [1, 3, 6, 6]."""
    from jaxconv.models.regnet import stages

    assert stages(16, 48, 27.89, 2.09, 8) == [(48, 1, 8), (104, 3, 8), (208, 6, 8), (440, 6, 8)]


if __name__ == "__main__":
    pinned = {
        name: hashlib.sha256("\n".join(paths_of(variables_of(name)[1])).encode()).hexdigest()
        for name in MODELS
    }
    (ROOT / "tests/models/paths.json").write_text(json.dumps(pinned, indent=1) + "\n")
