"""`train` is required; feature maps by name, inside a parent and in an NNX module too."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxconv
from jaxconv.inspect.attribution import grad_cam
from jaxconv.inspect.inside import activations
from jaxconv.models import MODELS
from tests.conftest import rarely
from tests.models.test_registry import SMALLEST, SOME, variables_of

KEY = jax.random.key(0)
TINY = {"units": (1, 1, 1), "width": 8, "small_images": True}


def tiny(num_classes=4, **arguments):
    """A small residual network: conv1, conv2, conv3, conv4, pool."""
    return jaxconv.create_model("resnet20_cifar", num_classes, **TINY, **arguments)


def images(n=2, size=16):
    return jax.random.normal(jax.random.key(1), (n, size, size, 3))


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("call", ["init", "apply", "nnx"])
@pytest.mark.parametrize("given", [{}, {"train": None}])
def test_train_is_required_and_the_error_says_what_to_write(call, given):
    model = tiny()
    with pytest.raises(TypeError, match="ResNet was called without `train`") as error:
        if call == "init":
            model.init(KEY, images(), **given)
        elif call == "apply":
            variables = model.init(KEY, images(), train=False)
            jax.jit(lambda v, x: model.apply(v, x, **given))(variables, images())
        else:
            nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(images(), **given)
    for words in ("train=True", 'mutable=["batch_stats"]', "rngs=", "train=False"):
        assert words in str(error.value)


@pytest.mark.parametrize("name", SMALLEST)
def test_every_family_requires_train(name):
    size, channels = MODELS[name].input_size[0], MODELS[name].input_size[-1]
    x = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    with pytest.raises(TypeError, match="without `train`"):
        jax.eval_shape(jaxconv.create_model(name, 3).init, KEY, x)


def test_training_without_the_statistics_is_an_error():
    model = tiny()
    variables = model.init(KEY, images(), train=False)
    with pytest.raises(Exception, match="batch_stats"):
        model.apply(variables, images(), train=True)


def test_a_network_of_one_s_own_may_have_a_default():
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(x.mean((1, 2)))

    state = jaxconv.create_state(Own(), jaxconv.train.step.optax.identity(), KEY, images())
    assert jaxconv.make_eval_step(Own())(
        state, {"image": images(), "label": jnp.zeros(2, jnp.int32), "mask": jnp.ones(2)}
    )
    assert Own().apply(state.variables, images()).shape == (2, 3)


@pytest.mark.parametrize("name", rarely(SMALLEST, {*SMALLEST} - SOME))
def test_every_family_has_maps_by_name(name):
    """The first and last map and the logits, in the order asked for, as `feature_info` has them."""
    model, variables, x = variables_of(name, num_classes=5)
    infos = jaxconv.feature_info(model, x.shape[1:])
    wanted = ([*infos][-1], [*infos][0], "logits")
    found = {}

    def run(variables, x):
        found.update(model.apply(variables, x, train=False, features=wanted))
        return found

    shapes = jax.eval_shape(run, variables, x)
    assert tuple(found) == wanted and shapes["logits"].shape == (1, 5)
    assert [shapes[name].shape[1:] for name in wanted[:2]] == [
        infos[name].shape for name in wanted[:2]
    ]


@pytest.mark.parametrize("text", ["conv3-4 bn relu maxpool2 conv3-5 relu fc6 relu fc", ""])
def test_maps_are_the_values_of_the_whole_network(text):
    model = jaxconv.from_text(text, 3) if text else tiny()
    variables = model.init(KEY, images(), train=False)
    every = jaxconv.features(model, variables, images())
    logits = model.apply(variables, images(), train=False)
    outputs = activations(model, variables, images())
    for name in every:
        (one,) = model.apply(variables, images(), train=False, features=name).values()
        np.testing.assert_array_equal(one, every[name])
        np.testing.assert_array_equal(one, outputs[name])
    both = jaxconv.features(model, variables, images(), ("conv2", "logits"))
    assert list(both) == ["conv2", "logits"]
    np.testing.assert_array_equal(both["logits"], logits)


@pytest.mark.parametrize("names", [(), [], (1,), ("conv1", None)])
def test_names_that_are_none(names):
    model = tiny()
    with pytest.raises(ValueError, match="names of feature maps, such as"):
        model.init(KEY, images(), train=False, features=names)


def test_unknown_names_are_told_with_the_nearest():
    model = tiny()
    variables = model.init(KEY, images(), train=False)
    with pytest.raises(ValueError, match="'conv44', did you mean 'conv4'.*ResNet has conv1, conv2"):
        model.apply(variables, images(), train=False, features=("conv1", "conv44"))
    with pytest.raises(ValueError, match="no feature map is called 'logit', did you mean 'logits'"):
        jaxconv.features(model, variables, images(), "logit")


class Pyramid(nn.Module):
    """A parent of two networks."""

    names: tuple = ("conv4", "conv2")

    def setup(self):
        self.first = tiny(0, norm="group")
        self.second = jaxconv.from_text("[conv3-4 bn relu maxpool2]*2 conv3-7", 0)
        self.head = nn.Dense(2)

    def __call__(self, x, train):
        maps = self.first(x, train=train, features=self.names)
        more = self.second(x, train, features=("pool2",))
        return {**maps, **more, "logits": self.head(maps["conv4"].mean((1, 2)))}


def test_maps_inside_a_parent_also_while_it_initialises():
    parent = Pyramid()
    output, variables = parent.init_with_output(KEY, images(), train=False)
    assert list(output)[:3] == ["conv4", "conv2", "pool2"]
    assert output["conv4"].shape == (2, 4, 4, 32) and output["conv2"].shape == (2, 16, 16, 8)
    again = jax.jit(functools.partial(parent.apply, train=False))(variables, images())
    for name, value in output.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-4, atol=1e-5)
    # What comes after the last map is not run: no parameters, no statistics.
    assert {*variables["params"]["second"]} == {"conv1", "norm1", "conv2", "norm2"}
    assert {*variables["batch_stats"]["second"]} == {"norm1", "norm2"}
    _, changed = parent.apply(variables, images(), train=True, mutable=["batch_stats"])
    moved = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), *(tree["batch_stats"] for tree in (variables, changed))
    )
    assert all(jax.tree.leaves(moved))


def test_parameters_of_a_whole_network_serve():
    """Maps of a network with all its parameters: what is not run is left alone in training."""
    whole = tiny()
    variables = whole.init(KEY, images(), train=False)
    maps, changed = whole.apply(
        variables, images(), train=True, features=("conv2",), mutable=["batch_stats"]
    )
    assert [*maps] == ["conv2"]
    before, after = variables["batch_stats"], {**variables["batch_stats"], **changed["batch_stats"]}
    assert jnp.any(before["conv1"]["norm"]["mean"] != after["conv1"]["norm"]["mean"])
    jax.tree.map(np.testing.assert_array_equal, before["conv4_1"], after["conv4_1"])
    apply = functools.partial(whole.apply, train=False)
    with pytest.raises(Exception, match="fc"):
        apply(whole.init(KEY, images(), train=False, features="conv4"), images())


def test_only_what_is_needed_is_computed():
    model = tiny()
    variables = model.init(KEY, images(), train=False)
    costs = {
        names: flops(
            lambda v, x, n=names: model.apply(v, x, train=False, features=n), variables, images()
        )
        for names in ("conv1", "conv2", "conv4", "logits")
    }
    head = flops(lambda v, x: model.apply(v, x, train=False), variables, images())
    assert costs["conv1"] < costs["conv2"] < costs["conv4"] < costs["logits"]
    assert costs["logits"] == pytest.approx(head, rel=0.01)
    first = jaxconv.create_model("resnet20_cifar", 0, **{**TINY, "units": (1,)})
    alone = flops(
        lambda v, x: first.apply(v, x, train=False, features="conv2"), variables, images()
    )
    assert costs["conv2"] == pytest.approx(alone, rel=0.01)


def test_a_smaller_image_serves_as_far_as_the_maps_go():
    """AlexNet's conv2 of an image that is too small for its last pooling and its classifier."""
    model, variables, _ = variables_of("alexnet", num_classes=3)
    x = jax.ShapeDtypeStruct((1, 60, 60, 3), jnp.float32)
    run = lambda names: jax.eval_shape(  # noqa: E731
        lambda v, x: model.apply(v, x, train=False, features=names), variables, x
    )
    assert run("conv2")["conv2"].shape == (1, 6, 6, 256)
    with pytest.raises(ValueError, match="pool3"):
        run(("conv2", "logits"))


def test_classifiers_beside_the_trunk_belong_to_the_logits():
    model = jaxconv.create_model("googlenet", 4)
    x = jax.ShapeDtypeStruct((1, 97, 97, 3), jnp.float32)
    init = lambda **call: jax.eval_shape(  # noqa: E731
        lambda key, x: model.init(key, x, train=False, **call), KEY, x
    )["params"]
    assert "aux1_fc1" in init() and "aux1_fc1" in init(features=("inception4e", "logits"))
    assert not any(name.startswith("aux") for name in init(features="inception4e"))


# NNX.


def bridged(model, x=None):
    x = images() if x is None else x
    return nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(x, train=False)


def test_maps_do_not_take_the_place_of_layers_in_an_nnx_module():
    model = bridged(tiny())
    before = jaxconv.from_nnx(model)[1]
    logits = model(images(), train=False)
    for mutable in (None, ["features"], ["features", "batch_stats"]):
        maps = model(images(), train=False, features=("conv1", "conv2"), mutable=mutable)
        assert maps["conv1"].shape == (2, 16, 16, 8) and [*maps] == ["conv1", "conv2"]
    model(images(), train=False, mutable=["features"])
    jax.tree.map(np.testing.assert_array_equal, before, jaxconv.from_nnx(model)[1])
    np.testing.assert_array_equal(logits, model(images(), train=False))


def test_from_nnx_gives_the_network_and_its_variables_as_they_are():
    model = bridged(tiny())
    model(images(), train=True, mutable=["batch_stats"])  # updates the running statistics
    module, variables = jaxconv.from_nnx(model)
    fresh = module.init(KEY, images(), train=False)
    assert jax.tree.structure(fresh) == jax.tree.structure(variables)
    assert jnp.any(variables["batch_stats"]["conv1"]["norm"]["mean"] != 0)
    np.testing.assert_array_equal(
        module.apply(variables, images(), train=False), model(images(), train=False)
    )
    maps = jaxconv.features(module, variables, images())
    np.testing.assert_array_equal(
        maps["conv4"], model(images(), train=False, features="conv4")["conv4"]
    )
    heat = grad_cam(module, variables, images(), jnp.array([0, 1]))
    assert heat.shape == (2, 16, 16)


def test_functions_of_linen_modules_say_what_to_do_with_nnx_modules():
    model = bridged(tiny())
    for function in (
        lambda: jaxconv.features(model, {}, images()),
        lambda: activations(model, {}, images()),
        lambda: grad_cam(model, {}, images(), jnp.array([0, 1])),
    ):
        with pytest.raises(TypeError, match=r"ToNNX of ResNet.*jaxconv.from_nnx\(model\)"):
            function()
    own = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="Linear is an NNX module.*Only what flax.nnx.bridge.ToNNX"):
        jaxconv.summarize(own, (16, 16, 3))
    with pytest.raises(TypeError, match="from_nnx takes a module of flax.nnx.bridge.ToNNX, not"):
        jaxconv.from_nnx(own)
    with pytest.raises(ValueError, match="no parameters yet: call its lazy_init"):
        jaxconv.from_nnx(nnx.bridge.ToNNX(tiny(), rngs=nnx.Rngs(0)))


def test_summaries_take_nnx_modules():
    model = bridged(tiny())
    assert jaxconv.summarize(model, (16, 16, 3)) == jaxconv.summarize(tiny(), (16, 16, 3))
    assert [*jaxconv.features_at(model, (16, 16, 3), (2, 4))] == ["conv3", "conv4"]


def test_a_module_without_features_is_told_where_to_look():
    module = nn.Dense(3)
    with pytest.raises(TypeError, match="Dense does not take `features`.*inside.activations"):
        jaxconv.features(module, module.init(KEY, jnp.ones((1, 4))), jnp.ones((1, 4)))


# Levels.

LEVELS = {
    "resnet50": {4: ("conv2", 256), 8: ("conv3", 512), 16: ("conv4", 1024), 32: ("conv5", 2048)},
    "resnet18_v2": {4: ("conv2", 64), 8: ("conv3", 128), 16: ("conv4", 256), 32: ("norm", 512)},
    "densenet121": {
        4: ("block1", 256),
        8: ("block2", 512),
        16: ("block3", 1024),
        32: ("norm", 1024),
    },
    "mobilenet_v2": {4: ("block3", 24), 8: ("block4", 32), 16: ("block6", 96), 32: ("conv2", 1280)},
    "mobilenet_v3_large": {4: ("block3", 24), 8: ("block6", 40), 16: ("block12", 112)},
    "efficientnet_b0": {4: ("stage3", 24), 8: ("stage4", 40), 16: ("stage6", 112)},
    "regnet_y_400mf": {4: ("stage1", 48), 8: ("stage2", 104), 16: ("stage3", 208)},
    "convnext_tiny": {4: ("res2", 96), 8: ("res3", 192), 16: ("res4", 384), 32: ("res5", 768)},
    "vgg16": {1: ("relu1_2", 64), 4: ("relu3_3", 256), 8: ("relu4_3", 512), 16: ("relu5_3", 512)},
    "googlenet": {4: ("norm2", 192), 8: ("inception3b", 480), 16: ("inception4e", 832)},
}


@pytest.mark.parametrize("name", LEVELS)
def test_levels(name):
    found = jaxconv.features_at(jaxconv.create_model(name, 0), (224, 224, 3), tuple(LEVELS[name]))
    assert [(level, info.channels) for level, info in found.items()] == [*LEVELS[name].values()]
    assert [info.stride for info in found.values()] == [(at, at) for at in LEVELS[name]]
    assert all(
        info.shape[:2] == (224 // at,) * 2
        for at, info in zip(LEVELS[name], found.values(), strict=True)
    )


def test_levels_follow_the_output_stride_and_any_norm():
    model = jaxconv.create_model("resnet50", 0, output_stride=16, norm="group")
    assert [*jaxconv.features_at(model, (224, 224, 3), (4, 8, 16))] == ["conv2", "conv3", "conv5"]
    with pytest.raises(
        ValueError, match=r"ResNet has stride 32 .*there are 2 \(conv1\), 4 \(conv2"
    ):
        jaxconv.features_at(model, (224, 224, 3))
    wave = jaxconv.from_text("[conv3-4 relu maxpool2]*3 globalpool fc2")
    assert [*jaxconv.features_at(wave, (64, 1), (4, 1))] == ["relu3", "relu1"]
