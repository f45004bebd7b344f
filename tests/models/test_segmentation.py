"""Networks that give each pixel a class: on any backbone, for one, two and three axes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.layers import resize
from jaxconv.models import abstract_variables
from jaxconv.models.levels import maps_by_stride

KEY = jax.random.key(0)


def shape_of(model, *shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    run = functools.partial(model.apply, train=False)
    return jax.eval_shape(run, abstract_variables(model, shape), x)


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_b0", "regnet_y_400mf"])
@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50", "unet"])
def test_any_backbone_by_name(name, backbone):
    model = jaxconv.create_model(name, 5, backbone=backbone)
    logits = shape_of(model, 2, 70, 90, 3)
    assert logits.shape == (2, 70, 90, 5) and logits.dtype == jnp.float32


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_another_backbone_does_not_get_the_arguments_of_the_published_one(name):
    model = jaxconv.create_model(name, 5, backbone="resnet18")
    assert model.maps[0] == "conv5" and shape_of(model, 1, 64, 64, 3).shape == (1, 64, 64, 5)


def test_the_maps_are_those_before_the_strides_were_given_up():
    model = jaxconv.create_model("fcn_resnet50", 5)
    assert model.maps == ("conv5", "conv4") and model.backbone.output_stride == 8
    assert maps_by_stride(jaxconv.create_model("resnet18", 0)) == {
        2: "conv1",
        4: "conv2",
        8: "conv3",
        16: "conv4",
        32: "conv5",
    }
    with pytest.raises(ValueError, match="no feature map whose size divides"):
        maps_by_stride(jaxconv.create_model("text:conv7-4/2p0 relu conv5-8/2p0 relu fc", 3))


def test_norms_and_strides_are_the_backbone_s_too():
    model = jaxconv.create_model("fcn_resnet50", 5, norm="group", output_stride=16)
    assert model.backbone.norm == "group" and model.backbone.output_stride == 16
    assert "batch_stats" not in abstract_variables(model, (1, 64, 64, 3))
    with pytest.raises(ValueError, match="norm is 'grup'"):
        jaxconv.create_model("fcn_resnet50", 5, norm="grup")


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_unet_keeps_the_size_of_odd_inputs(axes):
    model = jaxconv.create_model("unet", 4, widths=(4, 6, 8))
    size = (21, 18, 9)[:axes]
    assert shape_of(model, 2, *size, 1).shape == (2, *size, 4)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_transposed_convolution_whose_windows_lie_beside_one_another(axes):
    module = jaxconv.layers.ConvTranspose(3, (2, 3, 2)[:axes], (2, 3, 2)[:axes])
    x = jax.random.normal(KEY, (2, *(4, 5, 3)[:axes], 64))
    variables = module.init(KEY, x)
    kernel = variables["params"]["kernel"]
    wanted = jax.lax.conv_general_dilated(
        x,
        kernel,
        (1,) * axes,
        [(f - 1, f - 1) for f in kernel.shape[:axes]],
        lhs_dilation=kernel.shape[:axes],
        dimension_numbers=jaxconv.layers.windows.axes_of(axes),
    )
    np.testing.assert_allclose(module.apply(variables, x), wanted, rtol=1e-4, atol=1e-5)
    # He's: each value is of 64 inputs, and gets twice the variance of what it is of.
    assert 1.6 < float(jnp.var(kernel) * 64) < 2.4


def test_resize_is_linear_between_pixel_areas():
    x = jnp.array([0.0, 4.0]).reshape(1, 2, 1)
    np.testing.assert_allclose(resize(x, (4,))[0, :, 0], [0, 1, 3, 4])
    torch = pytest.importorskip("torch")
    x = jax.random.normal(KEY, (2, 5, 7, 3))
    for size in ((9, 20), (3, 4)):
        wanted = torch.nn.functional.interpolate(
            torch.from_numpy(np.array(x).transpose(0, 3, 1, 2)), size, mode="bilinear"
        )
        np.testing.assert_allclose(resize(x, size), wanted.numpy().transpose(0, 2, 3, 1), atol=1e-5)
    with pytest.raises(ValueError, match="has 1 numbers; the input has 2 spatial axes"):
        resize(x, (3,))


def test_a_missing_backbone_or_map_says_what_there_is():
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        jaxconv.create_model("fcn_resnet50", 3, backbone="resnet81")
    model = jaxconv.create_model("fcn_resnet50", 3, backbone="resnet18", maps=("conv9", "conv4"))
    with pytest.raises(ValueError, match="no feature map is called 'conv9'"):
        shape_of(model, 1, 64, 64, 3)
    model = jaxconv.create_model("unet", 3, backbone="resnet18", widths=(8, 8))
    with pytest.raises(ValueError, match="5 maps of the backbone need 4 widths"):
        shape_of(model, 1, 64, 64, 3)
