"""The chain networks and the registry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv


def shapes(model, shape):
    return jax.eval_shape(
        lambda key, x: model.init(key, x, train=False),
        jax.random.key(0),
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )


def test_chain_is_the_lecture_s_architecture():
    """[(CONV-RELU)*2-POOL]*2-(FC-RELU)*1, and the logits."""
    model = jaxconv.create_model(
        "chain", 10, filters=(6, 16), convs=2, filter_size=5, neurons=(84,)
    )
    params = shapes(model, (1, 32, 32, 3))["params"]
    assert {name: leaf["kernel"].shape for name, leaf in params.items()} == {
        "conv1_1": (5, 5, 3, 6),
        "conv1_2": (5, 5, 6, 6),
        "conv2_1": (5, 5, 6, 16),
        "conv2_2": (5, 5, 16, 16),
        "fc1": (8 * 8 * 16, 84),
        "votes": (84, 10),
    }


@pytest.mark.parametrize("shape", [(2, 40, 1), (2, 16, 12, 3), (2, 8, 8, 8, 1)])
def test_waveform_image_and_volume(shape):
    model = jaxconv.create_model("chain", 3, filters=(4, 8), pool="average", global_pool=True)
    logits, _ = model.init_with_output(jax.random.key(0), jnp.ones(shape), train=False)
    assert logits.shape == (2, 3)


def test_logits_and_parameters_are_float32():
    model = jaxconv.create_model("chain", 3, dtype="bfloat16", batch_norm=True, filters=(4,))
    logits, variables = model.init_with_output(
        jax.random.key(0), jnp.ones((2, 8, 8, 1)), train=True
    )
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_dropout_and_batch_norm_work_while_training_alone():
    model = jaxconv.create_model("chain", 3, filters=(4,), dropout=0.5, batch_norm=True)
    x = jax.random.normal(jax.random.key(1), (8, 8, 8, 1))
    variables = model.init(jax.random.key(0), x, train=False)
    first, second = (
        model.apply(
            variables, x, train=True, rngs={"dropout": jax.random.key(k)}, mutable=["batch_stats"]
        )[0]
        for k in (2, 3)
    )
    assert not np.allclose(first, second)
    still = model.apply(variables, x, train=False)
    np.testing.assert_array_equal(still, model.apply(variables, x, train=False))
    assert not np.allclose(first, still)


def test_layer_that_does_not_fit_is_named():
    model = jaxconv.create_model("chain", 3, filters=(4, 4), rounding="exact")
    with pytest.raises(
        ValueError,
        match=r"pool2: \(5 - 2\)/2 \+ 1 = 2.50: a 2-wide window at stride 2 does not fit 5",
    ):
        shapes(model, (1, 10, 10, 1))
    with pytest.raises(ValueError, match="pool3: .* a 2-wide window is larger than 1"):
        shapes(jaxconv.create_model("chain", 3, filters=(4, 4, 4)), (1, 6, 6, 1))


def test_registry():
    assert (
        "chain" in jaxconv.list_models()
        and jaxconv.list_models("ch*") == ["chain"]
        and jaxconv.list_models("nothing*") == []
    )
    assert jaxconv.model_arguments("chain")["filters"] == (16, 32)
    with pytest.raises(
        ValueError, match="no network is called 'chian', did you mean 'chain'.*list_models"
    ):
        jaxconv.create_model("chian", 2)
    with pytest.raises(ValueError, match="chain has no argument 'filter', did you mean 'filters'"):
        jaxconv.create_model("chain", 2, filter=3)
