"""The lecture's printed numbers, from these very layers: filter responses, pooled maps, the ReLU
row, the X itself.

The tables stand here as the lecture prints them, values cut (not rounded) to two decimals. Where
the lecture itself is at hand, every table of it is compared too, but for those that were misread
when it was turned into text.
"""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.data import xo
from jaxconv.layers import convolve, max_pool, relu


def table(text):
    return np.array(
        [[float(value) for value in line.split()] for line in text.strip().splitlines()]
    )


X = 2 * (np.eye(9) + np.eye(9)[::-1] > 0) - 1.0
X[[0, -1]] = X[:, [0, -1]] = -1

FEATURES = {
    "down": table("1 -1 -1\n-1 1 -1\n-1 -1 1"),
    "cross": table("1 -1 1\n-1 1 -1\n1 -1 1"),
    "up": table("-1 -1 1\n-1 1 -1\n1 -1 -1"),
}
RESPONSES = {
    "down": table("""
        0.77 -0.11  0.11  0.33  0.55 -0.11  0.33
       -0.11  1.00 -0.11  0.33 -0.11  0.11 -0.11
        0.11 -0.11  1.00 -0.33  0.11 -0.11  0.55
        0.33  0.33 -0.33  0.55 -0.33  0.33  0.33
        0.55 -0.11  0.11 -0.33  1.00 -0.11  0.11
       -0.11  0.11 -0.11  0.33 -0.11  1.00 -0.11
        0.33 -0.11  0.55  0.33  0.11 -0.11  0.77"""),
    "cross": table("""
        0.33 -0.55  0.11 -0.11  0.11 -0.55  0.33
       -0.55  0.55 -0.55  0.33 -0.55  0.55 -0.55
        0.11 -0.55  0.55 -0.77  0.55 -0.55  0.11
       -0.11  0.33 -0.77  1.00 -0.77  0.33 -0.11
        0.11 -0.55  0.55 -0.77  0.55 -0.55  0.11
       -0.55  0.55 -0.55  0.33 -0.55  0.55 -0.55
        0.33 -0.55  0.11 -0.11  0.11 -0.55  0.33"""),
    "up": table("""
        0.33 -0.11  0.55  0.33  0.11 -0.11  0.77
       -0.11  0.11 -0.11  0.33 -0.11  1.00 -0.11
        0.55 -0.11  0.11 -0.33  1.00 -0.11  0.11
        0.33  0.33 -0.33  0.55 -0.33  0.33  0.33
        0.11 -0.11  1.00 -0.33  0.11 -0.11  0.55
       -0.11  1.00 -0.11  0.33 -0.11  0.11 -0.11
        0.77 -0.11  0.11  0.33  0.55 -0.11  0.33"""),
}
POOLED = {
    "down": table(
        "1.00 0.33 0.55 0.33\n0.33 1.00 0.33 0.55\n0.55 0.33 1.00 0.11\n0.33 0.55 0.11 0.77"
    ),
    "cross": table(
        "0.55 0.33 0.55 0.33\n0.33 1.00 0.55 0.11\n0.55 0.55 0.55 0.11\n0.33 0.11 0.11 0.33"
    ),
    "up": table(
        "0.33 0.55 1.00 0.77\n0.55 0.55 1.00 0.33\n1.00 1.00 0.11 0.55\n0.77 0.33 0.55 0.33"
    ),
}
RELU_ROW = table("0.77 0 0.11 0.33 0.55 0 0.33")


def cut(values):
    """Cut to two decimals; the small push keeps 0.33333 * 3 from becoming 0.99."""
    return np.trunc(np.asarray(values, np.float64) * 100 + 1e-3 * np.sign(values)) / 100


def respond(name, image=X):
    """The lecture's filtering: multiply, add up, divide by the number of pixels in the feature."""
    kernel = FEATURES[name].reshape(3, 3, 1, 1) / FEATURES[name].size
    return np.asarray(convolve(jnp.float32(image).reshape(1, 9, 9, 1), jnp.float32(kernel)))[
        0, :, :, 0
    ]


@pytest.mark.parametrize("name", FEATURES)
def test_filter_responses(name):
    np.testing.assert_array_equal(cut(respond(name)), RESPONSES[name])


@pytest.mark.parametrize("name", FEATURES)
def test_pooled_maps(name):
    """Windows of 2 at stride 2 over 7 pixels give 4: the last ones hang over the edge."""
    pooled = max_pool(
        jnp.float32(respond(name)).reshape(1, 7, 7, 1), window=2, stride=2, rounding="ceil"
    )
    np.testing.assert_array_equal(cut(pooled)[0, :, :, 0], POOLED[name])


def test_relu_row():
    np.testing.assert_array_equal(cut(relu(jnp.float32(respond("down"))))[:1], RELU_ROW)


def test_patch_products():
    """ "Line up the feature and the image patch, multiply": at the arm's middle all agree, at the
    X's centre two do not.
    """
    np.testing.assert_array_equal(FEATURES["down"] * X[1:4, 1:4], np.ones((3, 3)))
    np.testing.assert_array_equal(FEATURES["down"] * X[3:6, 3:6], table("1 1 -1\n1 1 1\n-1 1 1"))
    assert cut(respond("down"))[1, 1] == 1.00
    assert cut(respond("down"))[3, 3] == 0.55


def test_nine_by_nine_x_is_the_source_s():
    drawn = (xo.draw(0, "train", i, size=9) for i in range(20))
    image = next(image for image, label in drawn if label == 1)
    np.testing.assert_array_equal(image[:, :, 0] / 127.5 - 1, X)


def test_filter_is_the_convolution_formula_with_the_kernel_flipped():
    """f * g [x, y] = sum over n1, n2 of f[n1, n2] g[x - n1, y - n2]."""
    random = np.random.default_rng(0)
    image, kernel = random.normal(size=(6, 7)), random.normal(size=(3, 4))
    formula = np.zeros((6 + 2, 7 + 3))
    for x in range(formula.shape[0]):
        for y in range(formula.shape[1]):
            for n1 in range(6):
                for n2 in range(7):
                    if 0 <= x - n1 < 3 and 0 <= y - n2 < 4:
                        formula[x, y] += image[n1, n2] * kernel[x - n1, y - n2]
    flipped = jnp.float32(kernel[::-1, ::-1]).reshape(3, 4, 1, 1)
    ours = convolve(jnp.float32(image).reshape(1, 6, 7, 1), flipped, padding=(2, 3))
    np.testing.assert_allclose(ours[0, :, :, 0], formula, rtol=1e-5, atol=1e-5)


def printed_tables(lines):
    """(line number, rows of texts) of every table of the lecture."""
    rows, start = [], 0
    for number, line in enumerate([*lines, ""], 1):
        if line.startswith("|"):
            start = start or number
            if not re.fullmatch(r"[|\s-]*-{2,}[|\s-]*", line):
                rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif rows:
            yield start, rows if any(rows[0]) else rows[1:]
            rows, start = [], 0


# Every table that the toy ConvNet's slides print.
PRINTED = {
    "image": X,
    **FEATURES,
    **{f"responses to {name}": response for name, response in RESPONSES.items()},
    **{f"pooled {name}": pooled for name, pooled in POOLED.items()},
    "stacked responses": np.concatenate(list(RESPONSES.values())),
    "ReLU row": RELU_ROW,
    "patch where all agree": FEATURES["down"] * X[1:4, 1:4],
    "patch where two do not": FEATURES["down"] * X[3:6, 3:6],
    "one response in an empty image": np.ones((9, 9)),
}
# Misread when the slides were turned into text: the X at lines 773, 805 and 843; two cells of the
# stacked maps at line 857, row 9 column 1 and row 19 column 1.
MISREAD = {773, 805, 843}
MISREAD_CELLS = {(857, 8, 0), (857, 18, 0)}
# The deformed X, and the map of where it differs. After the toy ConvNet come customers' data,
# padding pictures and architectures.
OTHER = {98, 112}
LAST = 1200


def test_every_printed_table(lecture):
    compared = 0
    for start, rows in printed_tables(lecture):
        cells = {
            (i, j): float(cell)
            for i, row in enumerate(rows)
            for j, cell in enumerate(row)
            if re.fullmatch(r"-?\d+(\.\d+)?", cell) and (start, i, j) not in MISREAD_CELLS
        }
        if cells and start not in MISREAD | OTHER and start < LAST:
            # A half-filled table of the walk shows the first part of a whole one.
            assert any(shows(values, cells) for values in PRINTED.values()), f"line {start}: {rows}"
            compared += 1
    assert compared > 90


def shows(values, cells):
    """Whether every filled cell of a printed table is the value there."""
    return all(
        i < values.shape[0] and j < values.shape[1] and values[i, j] == cell
        for (i, j), cell in cells.items()
    )
