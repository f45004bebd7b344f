"""Random operations on colours and shapes: colour jitter, RandAugment, TrivialAugment.

All are (key, batch) -> batch on uint8 images, or floating-point ones from 0 to 1, which are rounded
to 256 levels where they change. The operations of each space, and their values from
the weakest level, 0, to the strongest, 1:

                    torchvision        wide (TrivialAugment)   timm ("increasing")     unit
    shear           0 to 0.3           0 to 0.99               0 to 0.3                pixels a
                    pixel, either way
    translate       0 to 150/331       0 to 32 pixels          0 to 0.45               of the side,
                    in whole pixels, either way
    rotate          0 to 30            0 to 135                0 to 30                 degrees,
                    either way
    brightness, contrast, saturation, sharpness
                    0 to 0.9           0 to 0.99               0 to 0.9                factor 1 plus
                                       or minus it
    posterize       8 to 4             8 to 2                  4 to 0                  bits
    solarize        255 to 0           255 to 0                256 to 0                threshold
    solarize_add    -                  -                       0 to 110                levels
    also            identity, autocontrast, equalize           autocontrast, equalize, invert
    fill            black              black                   the mean colour
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxconv.data import colour
from jaxconv.data.interface import Batch, keys_of

LEVELS = 31  # of TrivialAugment


def space(name: str, height: int, width: int) -> dict[str, tuple[float, float]]:
    """The operations of a space, with their values at level 0 and level 1.

    `name` is `torchvision`, `wide` or `timm`; see the module's table.
    """
    shear, turn, factor, shift = {
        "torchvision": (0.3, 30.0, 0.9, (150 / 331 * width, 150 / 331 * height)),
        "wide": (0.99, 135.0, 0.99, (32.0, 32.0)),
        "timm": (0.3, 30.0, 0.9, (0.45 * width, 0.45 * height)),
    }[name]
    table: dict[str, tuple[float, float]] = {
        "shear_x": (0, shear),
        "shear_y": (0, shear),
        "translate_x": (0, shift[0]),
        "translate_y": (0, shift[1]),
        "rotate": (0, turn),
    }
    table |= dict.fromkeys(("brightness", "saturation", "contrast", "sharpness"), (0, factor))
    table |= dict.fromkeys(("autocontrast", "equalize"), (0, 0))
    if name == "timm":
        # timm's bits are 4 - int(4 x level), but ours are rounded.
        return table | {
            "posterize": (4.499, 0.499),
            "solarize": (256, 0),
            "solarize_add": (0, 110),
            "invert": (0, 0),
        }
    return table | {
        "posterize": (8, 4 if name == "torchvision" else 2),
        "solarize": (255, 0),
        "identity": (0, 0),
    }


SIGNED = (*colour.MATRICES, *colour.BASES)


def _one_operation(
    keys: jax.Array,
    image: jax.Array,
    level: jax.Array,
    probability: float,
    name: str,
    fill: jax.Array,
    interpolation: str,
) -> jax.Array:
    """A random operation of a space on each example [B, H, W, C] float32, at its level [B]."""
    table = space(name, *image.shape[1:3])
    first, last = (jnp.array(values, jnp.float32) for values in zip(*table.values(), strict=True))
    signed = jnp.array([operation in SIGNED for operation in table])

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        which, sign, coin = (jax.random.fold_in(key, n) for n in range(3))
        return (
            jax.random.randint(which, (), 0, len(table)),
            jax.random.rademacher(sign, (), jnp.float32),
            jax.random.uniform(coin),
        )

    choice, sign, coin = jax.vmap(draw)(keys)
    value = first[choice] + level * (last - first)[choice]
    value = jnp.where(signed[choice], sign * value, value)
    out = colour.apply(image, tuple(table), choice, value, fill, interpolation)
    return out if probability >= 1 else jnp.where(colour.each(coin < probability), out, image)


def randaugment(
    key: jax.Array,
    batch: Batch,
    layers: int,
    level: float,
    deviation: float,
    probability: float,
    space: str,
    mean: Sequence[float],
    interpolation: str,
) -> Batch:
    """RandAugment: a sequence of `layers` random operations on each image [B, H, W, C] uint8.

    Args:
      key, batch: with `position`.
      layers: N of the paper.
      level: strength from 0 to 1; M of the paper over the number of its levels.
      deviation: of normal noise on the level of each operation; the level is clipped to 0 and 1.
      probability: that an operation is applied at all.
      space: `torchvision`, `wide` or `timm`.
      mean: of the data's colours, 0 to 1; the fill color of the space `timm`.
      interpolation: `nearest` or `bilinear`.
    """
    image = levels = colour.to_levels(batch["image"])
    black = jnp.zeros(image.shape[-1])
    fill = jnp.round(black + 255 * jnp.array(mean, jnp.float32)) if space == "timm" else black
    for layer in range(layers):
        keys = keys_of(jax.random.fold_in(key, layer), batch)
        strength = jnp.full(len(image), level, jnp.float32)
        if deviation:
            noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 3)))(keys)
            strength = jnp.clip(strength + deviation * noise, 0, 1)
        image = _one_operation(keys, image, strength, probability, space, fill, interpolation)
    return batch | {"image": colour.from_levels(image, levels, batch["image"])}


def trivial(key: jax.Array, batch: Batch, interpolation: str) -> Batch:
    """TrivialAugment: a random operation at one of 31 levels on each image [B, H, W, C]."""
    levels, keys = colour.to_levels(batch["image"]), keys_of(key, batch)
    level = jax.vmap(lambda k: jax.random.randint(jax.random.fold_in(k, 3), (), 0, LEVELS))(
        keys
    ).astype(jnp.float32) / (LEVELS - 1)
    black = jnp.zeros(levels.shape[-1])
    image = _one_operation(keys, levels, level, 1.0, "wide", black, interpolation)
    return batch | {"image": colour.from_levels(image, levels, batch["image"])}


def colour_jitter(
    key: jax.Array,
    batch: Batch,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    probability: float = 1.0,
) -> Batch:
    """Change brightness, contrast, saturation and hue of each image [B, H, W, C] at random, with a
    probability.

    The factors of the first three are in [1 - x, 1 + x] and at least 0; the shift of the hue is in
    [-x, x]. The order of the enabled operations is drawn once per batch (torchvision draws it per
    image), so each is computed once.
    """
    keys = keys_of(key, batch)

    def blended(name: str, most: float, image: jax.Array) -> jax.Array:
        factor = draw(name, max(0.0, 1 - most), 1 + most)
        return colour.blend(colour.BASES[name](image), image, colour.each(factor))

    def draw(name: str, low: float, high: float) -> jax.Array:
        n = ("brightness", "contrast", "saturation", "hue").index(name)
        return jax.vmap(
            lambda k: jax.random.uniform(jax.random.fold_in(k, n), minval=low, maxval=high)
        )(keys)

    operations = []
    for name, most in (
        ("brightness", brightness),
        ("contrast", contrast),
        ("saturation", saturation),
    ):
        if most:
            operations.append(lambda image, name=name, most=most: blended(name, most, image))
    if hue:
        operations.append(lambda image: colour.hue(image, colour.each(draw("hue", -hue, hue))))
    image = levels = colour.to_levels(batch["image"])
    orders = jnp.array(list(itertools.permutations(range(len(operations)))))
    order = orders[jax.random.randint(key, (), 0, len(orders))]
    for place in range(len(operations)):
        image = jax.lax.switch(order[place], operations, image)
    if probability < 1:
        coin = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 4)))(keys)
        image = jnp.where(colour.each(coin < probability), image, levels)
    return batch | {"image": colour.from_levels(image, levels, batch["image"])}
