"""Cross-validation: folds of any split."""

import numpy as np
import pytest

from jaxconv.checks import check_config
from jaxconv.config import default_config
from jaxconv.data.folds import parse_split, places_of
from jaxconv.data.interface import Arrays
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError


def test_folds_cover_the_split_once():
    folds = [places_of(103, "fold", 10, n, seed=0) for n in range(10)]
    assert sorted(np.concatenate(folds)) == [*range(103)]
    assert {len(fold) for fold in folds} == {10, 11}
    rest = places_of(103, "rest", 10, 3, seed=0)
    assert sorted([*rest, *folds[3]]) == [*range(103)]
    assert [*places_of(103, "fold", 10, 3, seed=1)] != [*folds[3]]
    with pytest.raises(UserError, match="data.folds is 10, and the split has 9 examples"):
        places_of(9, "fold", 10, 0, seed=0)


def test_split_names():
    assert parse_split("train") == ("train", "")
    assert parse_split("train[fold]") == ("train", "fold")
    assert parse_split("a b[!fold]") == ("a b", "rest")
    assert parse_split("train[:10%]") == ("train[:10%]", "")


def settings(source="xo", **data):
    config = default_config()
    config.data.source, config.steps = source, 1
    config.data.xo.train_examples = config.data.toy.train_examples = 30
    config.data.folds = 5
    config.data.train_split, config.data.eval_split = "train[!fold]", "train[fold]"
    config.data.update(data)
    return config


@pytest.mark.parametrize("limit", [0, 2_000_000_000])
@pytest.mark.parametrize("source", ["xo", "tones", "tests/data/test_folds.py:numbers"])
def test_any_source(source, limit):
    config = settings(source, fold=1, resident_limit=limit)
    data = config.data
    check_config(config)
    whole = open_source(data, "train")
    rest, fold = open_source(data, "train[!fold]"), open_source(data, "train[fold]")
    assert (len(rest), len(fold)) == (24, 6)
    of_all = {image.tobytes() for image in (whole[i]["image"] for i in range(30))}
    of_parts = [part[i]["image"].tobytes() for part in (rest, fold) for i in range(len(part))]
    assert len(of_parts) == 30 and set(of_parts) == of_all
    place = places_of(30, "fold", 5, 1, 0)[2]
    assert fold.name(2) == whole.name(place) and fold[2]["label"] == whole[place]["label"]
    assert fold.labels_of_all()[2] == whole.labels_of_all()[place]
    data.fold = 2
    assert open_source(data, "train[fold]").checksum() != fold.checksum()


class Numbers(Arrays):
    """A source that is not one of jaxconv's own."""


def numbers(data, split):
    values = np.arange(30, dtype=np.uint8)
    return Numbers(np.repeat(values, 16).reshape(30, 4, 4, 1), (values % 2).astype(np.int32), "ab")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": 5}, "data.fold is 5; it must be less than data.folds, 5"),
        ({"folds": 1}, "data.folds is 1; it must be at least 2"),
        (
            {"train_split": "train", "eval_split": "test"},
            r"data.folds is 5, and does nothing: set --config.data.train_split='train\[!fold\]'",
        ),
    ],
)
def test_what_does_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        check_config(settings(**changes))
