"""ImageNet's classes in WordNet: the lecture's path, all others, and the severity of mistakes."""

import re
from pathlib import Path

import numpy as np
import pytest

from jaxconv.data import wordnet
from jaxconv.errors import UserError
from tests.conftest import assert_one_line_error, command

HUSKY, MALAMUTE, TABBY, HAMMER = "n02109961", "n02110063", "n02123045", "n03481172"
DEBIAN = Path("/usr/share/wordnet")


def classes():
    return [synset.id for synset in wordnet.synsets().values() if synset.label >= 0]


def test_a_thousand_classes_in_the_order_of_their_ids():
    assert len(classes()) == 1000 and classes() == sorted(classes())
    assert [synset.label for synset in wordnet.synsets().values()][:1000] == list(range(1000))
    assert classes()[248] == HUSKY and classes()[587] == HAMMER


def test_every_way_up_ends_at_entity():
    for id in classes():
        ways = wordnet.paths(id)
        assert len(set(ways)) == len(ways)
        for way in ways:
            assert wordnet.synsets()[way[-1]].words == ("entity",)
            assert all(
                above in wordnet.synsets()[below].parents
                for below, above in zip(way, way[1:], strict=False)
            )


def test_the_lectures_path(lecture):
    printed = [re.findall(r"\[(.*?)\]\(#\)", line) for line in lecture[10:27]]
    printed = [tuple(words) for words in printed if words]
    first = wordnet.paths(HUSKY)[0]
    assert [wordnet.synsets()[id].words for id in first] == printed
    assert len(first) == 16


def test_a_dog_is_a_domestic_animal_too():
    ways = wordnet.paths(HUSKY)
    assert len(ways) == 2 and [wordnet.synsets()[way[3]].words[0] for way in ways] == [
        "canine",
        "domestic animal",
    ]


def test_heights_of_mistakes():
    costs = wordnet.mistake_heights(classes())
    assert costs.shape == (1000, 1000) and (costs == costs.T).all()
    off_diagonal = costs[~np.eye(1000, dtype=bool)]
    assert off_diagonal.min() == 1 and not costs.diagonal().any()
    husky, malamute, tabby, hammer = (
        wordnet.find(id).label for id in (HUSKY, MALAMUTE, TABBY, HAMMER)
    )
    # A malamute is also a sled dog, a cat is another pet, a hammer is only another object.
    assert costs[husky, malamute] < costs[husky, tabby] < costs[husky, hammer]
    for a, b in ((husky, malamute), (husky, tabby), (husky, hammer), (3, 990)):
        lowest = wordnet.lowest_common_ancestor(classes()[a], classes()[b])
        assert costs[a, b] == wordnet.heights()[lowest]
        assert lowest in wordnet.ancestors(classes()[a]) & wordnet.ancestors(classes()[b])


def test_a_part_of_the_classes_in_any_order():
    ids = [TABBY, HUSKY, HAMMER]
    whole = wordnet.mistake_heights(classes())
    labels = [wordnet.find(id).label for id in ids]
    np.testing.assert_array_equal(wordnet.mistake_heights(ids), whole[np.ix_(labels, labels)])


def test_words_and_wrong_words():
    assert wordnet.find("husky").id == wordnet.find("Eskimo dog").id == HUSKY
    with pytest.raises(UserError, match="did you mean 'husky'"):
        wordnet.find("huskey")
    with pytest.raises(UserError, match="did you mean 'n02109961'"):
        wordnet.find("n02109962")


def test_classes_by_their_names():
    names = ["zebra", "Teddy_bear, plush", "nothing", "n02084071", "n01440764"]
    assert wordnet.labels_of(names) == [340, 850, -1, -1, 0]  # n02084071 is the ancestor dog
    with pytest.raises(UserError, match="'crane' is the name of several.*n02012849.*n03126707"):
        wordnet.labels_of(["crane"])
    mixed = list(wordnet.imagenet())
    assert wordnet.labels_of(mixed) == list(range(1000))
    mixed[340] = "zebra"
    assert wordnet.wordnet_ids(mixed) == wordnet.imagenet()


@pytest.mark.slow
def test_the_command():
    process = command("wordnet", HUSKY)
    assert process.returncode == 0 and process.stdout.startswith(
        "path 1 of 2\nn02109961  Eskimo dog, husky (breed of"
    )
    between = command("wordnet", "husky", "tabby")
    assert between.returncode == 0 and "domestic animal" in between.stdout.splitlines()[-1]
    assert_one_line_error(command("wordnet", "huskey"), 2, "husky")


@pytest.mark.slow
def test_the_file_is_made_from_wordnet():
    if not (DEBIAN / "data.noun").is_file():
        pytest.skip(f"{DEBIAN} is not there: the package wordnet-base has it")
    datasets = pytest.importorskip("tensorflow_datasets")
    labels = (
        (Path(datasets.__file__).parent / "datasets" / "imagenet2012" / "labels.txt")
        .read_text()
        .split()
    )
    assert wordnet.make(DEBIAN, labels) == wordnet.FILE.read_text()
