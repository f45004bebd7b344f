"""What all networks share: the fields of `create_model`, named feature maps, common layers."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxconv.arithmetic import atrous_spacings
from jaxconv.errors import nearest
from jaxconv.layers import BatchNorm, Conv, Dense, FrozenBatchNorm, group_norm, no_norm, relu
from jaxconv.layers.conv import Ints, per_axis
from jaxconv.models import requested

# The version of the public parameter paths: increase it whenever a path of any network changes (see
# train/initial.py).
LAYOUT = 1
AUXILIARY = "auxiliary"
# Makes a norm for maps [N, ..., C], such as a Linen module; takes its `name`.
Norm = Callable[..., Callable[[jax.Array], jax.Array]]
NORMS = ("batch", "frozen", "group", "layer", "none")

# No default: `inspect` and editors show `train` as required, and the message can say what to write.
_REQUIRED: Any = inspect.Parameter.empty
_TRAIN_MISSING = (
    "{0} was called without `train`. To train, write net.apply(variables, images, train=True, "
    'mutable=["batch_stats"], rngs={{"dropout": key}}); to predict, net.apply(variables, images, '
    "train=False); to initialise, net.init(key, images, train=False)"
)


def _frozen(value: Any) -> Any:
    """Lists, and lists in them, as tuples; anything else as it is."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


class Network(nn.Module):
    """Base class of the networks; a subclass has `forward(x, train)`, a compact method.

    Attributes:
      num_classes: logits to return; 0 returns the input of the last layer, the features.
      dtype: the compute type; parameters, running statistics and logits are float32.
      axis_name: under `pmap`, the axis over which BatchNorm takes its statistics.
      norm_groups: consecutive parts of the batch that BatchNorm normalises separately, see
        `layers.BatchNorm`.
      frozen_norm: BatchNorm uses its running statistics in training too, and gradients flow
        through it (a frozen backbone).
      norm: one of `NORMS`, see `tools`.
      output_stride: pixels between neighbouring values of the last feature maps: later strides
        become dilations of the same filters (DeepLab, Chen et al. 2017, arXiv:1706.05587). 0 keeps
        the network's own.
    """

    num_classes: int
    dtype: Any = jnp.float32
    axis_name: str | None = None
    norm_groups: int = 1
    frozen_norm: bool = False
    norm: str = "batch"
    output_stride: int = 0

    def __post_init__(self) -> None:
        # A module with a list is not hashable, so it cannot be a static argument of `jax.jit`.
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _frozen(getattr(self, field.name)))
        super().__post_init__()

    def __call__(
        self,
        x: jax.Array,
        train: bool = _REQUIRED,
        features: str | Sequence[str] | None = None,
        **settings: Any,
    ) -> Any:
        """[N, *spatial, C], such as images, -> logits [N, num_classes], float32.

        Args:
          train: required. True normalises with the batch's statistics and updates the running
            ones (apply with `mutable=["batch_stats"]`), and drops values (`rngs={"dropout": key}`).
          features: names of feature maps. Then {name: map} is returned, in this order; layers
            after the last of them are not run, and have no parameters if this call initialises
            them. `"logits"` among the names asks for the logits too; `"*"`, for all maps.
          **settings: arguments that the network's own `forward` takes, as those of `rcnn.RCNN`.

        Raises:
          TypeError: `train` is not given.
          ValueError: a feature map does not exist; the message names the nearest.
        """
        if train is _REQUIRED or train is None:
            raise TypeError(_TRAIN_MISSING.format(type(self).__name__))
        self.check()
        request = None if features is None else requested.Request(features)
        with requested.asking(request):
            try:
                output = self.forward(x, train, **settings)
            except requested.Complete as complete:
                if request is None or complete.request is not request:
                    raise
                return request.answer()
        return output if request is None else request.answer_with(output, type(self).__name__)

    def forward(self, x: jax.Array, train: bool) -> Any:
        """[N, *spatial, C] -> logits [N, num_classes], float32, or what the network is for."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(x, train)")

    def strides(self) -> tuple[tuple[int, ...], int]:
        """Strides of its layers or stages, and how many leading ones `output_stride` cannot change.

        Raises:
          ValueError: it has no `output_stride` to choose.
        """
        if self.output_stride:
            raise ValueError(f"{type(self).__name__} has no output_stride but its own")
        return (), 0

    def spacings(self) -> tuple[int, ...]:
        """`atrous` of each layer or stage of `strides`; see `arithmetic.atrous_spacings`."""
        strides, fixed = self.strides()
        return atrous_spacings(strides, self.output_stride, fixed, type(self).__name__)

    def normless(self) -> str:
        """Why it has no norm for `norm` to choose; empty if it has one."""
        return ""

    def check(self) -> None:
        """Raise ValueError for settings that are impossible or would do nothing."""
        if self.norm not in NORMS:
            raise ValueError(
                f"norm is {self.norm!r}{nearest(self.norm, NORMS)}; it must be one of "
                f"{', '.join(NORMS)}"
            )
        why = self.normless()
        settings = {"norm": type(self).norm} if why else {}
        if why or self.norm != "batch":
            settings |= {"frozen_norm": False, "norm_groups": 1}
            why = why or f"norm is {self.norm!r}"
        for name, default in settings.items():
            if (value := getattr(self, name)) != default:
                raise ValueError(f"{name} is {value!r}, which would do nothing: {why}")
        self.spacings()

    def tools(
        self,
        train: bool,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        scale: bool = True,
        norm: str = "",
    ) -> tuple[Callable[..., Conv], Norm]:
        """Convolution and norm, configured for this network and mode; `scale`: the norm has one.

        The norm is `norm`, by default the network's: BatchNorm; `frozen`: BatchNorm whose
        statistics, scale and bias stay what they are, none of them a parameter; `group`: GroupNorm
        in up to 32 groups, see `layers.group_count`; `layer`: LayerNorm over the channels of each
        position; `none`. Convolutions have a bias only with `none`.
        """
        norm = norm or self.norm
        settings = {"epsilon": epsilon, "dtype": self.dtype, "use_scale": scale}
        batch_norm = functools.partial(
            BatchNorm,
            use_running_average=not train or self.frozen_norm,
            momentum=momentum,
            axis_name=self.axis_name,
            groups=self.norm_groups,
            **settings,
        )
        norms = {
            "batch": batch_norm,
            "frozen": functools.partial(FrozenBatchNorm, **settings),
            "group": functools.partial(group_norm, **settings),
            "layer": functools.partial(nn.LayerNorm, **settings),
            "none": no_norm,
        }
        conv = functools.partial(Conv, use_bias=norm == "none", dtype=self.dtype)
        return conv, norms[norm]

    def note(self, name: str, x: jax.Array) -> jax.Array:
        """Return the feature map `x` under a name.

        The name is for `features` of `__call__`, `jaxconv.summarize` and rematerialisation.
        """
        return named(name, x)

    def classifies(self) -> bool:
        """Whether this call is for the logits, not for feature maps alone."""
        request = requested.current()
        return bool(self.num_classes) and (request is None or request.logits)

    def keep(self, collection: str, name: str, value: Any) -> None:
        """Store a value in a collection, if the caller asks for it with `mutable`.

        Unlike with Linen's `sow`, the name may also be a layer's.
        """
        if self.is_mutable_collection(collection) and not self.is_initializing():
            self.put_variable(collection, name, value)

    def head(self, x: jax.Array, name: str = "fc", **settings: Any) -> jax.Array:
        """The last fully connected layer: [N, ...] -> logits [N, num_classes], float32.

        With 0 classes its input is returned, [N, C] float32. `settings` are those of `Dense`.
        """
        if not self.num_classes:
            return x.reshape(x.shape[0], -1).astype(jnp.float32)
        layer = Dense(self.num_classes, dtype=self.dtype, name=name, **settings)
        return layer(x).astype(jnp.float32)


def named(name: str, x: jax.Array) -> jax.Array:
    """`Network.note`, for modules inside a network."""
    x = checkpoint_name(x, name)
    if request := requested.current():
        request.meet(name, x)
    return x


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, and the activation; parameters under `conv` and `norm`.

    Attributes:
      conv, norm: from `Network.tools`.
      act: the activation; None for none.
      filter_size, stride: one for all axes, or one for each.
      padding: pixels; -1 is (F - 1)/2, times the dilation; `same` is TensorFlow's, see
        `arithmetic.same_widths`.
    """

    filters: int
    conv: Callable[..., Conv]
    norm: Norm
    filter_size: Ints = 3
    stride: Ints = 1
    padding: int | str = -1
    groups: int = 1
    act: Callable[[jax.Array], jax.Array] | None = relu
    atrous: int = 0
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, *spatial, C] -> [N, *output, filters]."""
        sizes = per_axis(self.filter_size, x.ndim - 2, "filter size")
        around = [self.dilation * (f - 1) // 2 for f in sizes]
        padding = around if self.padding == -1 else self.padding
        settings = {"groups": self.groups, "atrous": self.atrous, "name": "conv"}
        sizes = (self.filter_size, self.stride, padding, self.dilation)
        x = self.conv(self.filters, *sizes, **settings)(x)
        x = self.norm(name="norm")(x)
        return x if self.act is None else self.act(x)


class SqueezeExcite(nn.Module):
    """Scales each feature map by a weight computed from the means of all of them.

    Hu et al. 2018, arXiv:1709.01507. Parameters are under `reduce` and `expand`.

    Attributes:
      squeezed: filters of `reduce`.
      act, gate: the two activations.
    """

    squeezed: int
    conv: Callable[..., Conv]
    act: Callable[[jax.Array], jax.Array] = relu
    gate: Callable[[jax.Array], jax.Array] = nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, *spatial, C] -> the same."""
        weights = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), keepdims=True)
        weights = self.act(self.conv(self.squeezed, 1, use_bias=True, name="reduce")(weights))
        return x * self.gate(self.conv(x.shape[-1], 1, use_bias=True, name="expand")(weights))


def stochastic_depth(x: jax.Array, share: float, train: bool) -> jax.Array:
    """In training, drop a residual [N, *spatial, C] for a share of examples and scale the others.

    Huang et al. 2016, arXiv:1603.09382. Call it inside a module.
    """
    return nn.Dropout(share, broadcast_dims=tuple(range(1, x.ndim)), deterministic=not train)(x)


def every_nth(x: jax.Array, n: int) -> jax.Array:
    """Every n-th position of [N, *spatial, C]; 0 and 1 leave it as it is.

    Before a layer that takes all positions at once: those that a map had without `output_stride`.
    """
    return x[:, *(slice(None, None, n),) * (x.ndim - 2)] if n > 1 else x


def global_mean(x: jax.Array) -> jax.Array:
    """[N, *spatial, C] -> [N, C], the mean over all positions."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))


def round_channels(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels`, at least 90% of it (MobileNets' rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
