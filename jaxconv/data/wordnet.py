"""ImageNet's classes in WordNet: the lecture's path from "Eskimo dog, husky" to "entity", and how
severe a mistake is.

wordnet.tsv holds the 1,000 classes of ILSVRC 2012 and all their ancestors, from WordNet 3.0
(Fellbaum 1998), whose licence is in the file. To regenerate it from Debian's package wordnet-base:

    python -m jaxconv.data.wordnet /usr/share/wordnet > jaxconv/data/wordnet.tsv

WordNet is a graph, not a tree: a dog is a canine and a domestic animal. So there may be several
paths from a class to the root.
"""

import dataclasses
import functools
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxconv.errors import UserError, nearest

FILE = Path(__file__).with_name("wordnet.tsv")


@dataclasses.dataclass(frozen=True)
class Synset:
    """A set of synonyms, WordNet's node.

    Attributes:
      id: `n` and the offset in WordNet's noun file, such as n02109961; ImageNet's name for a class.
      words: the synonyms.
      gloss: what it means.
      parents: ids of its direct hypernyms, in WordNet's order.
      label: its index among the 1,000 classes, in the order of their ids; -1 for an ancestor.
    """

    id: str
    words: tuple[str, ...]
    gloss: str
    parents: tuple[str, ...]
    label: int = -1

    def __str__(self) -> str:
        return f"{', '.join(self.words)} ({self.gloss})"


@functools.cache
def synsets() -> dict[str, Synset]:
    """All synsets of wordnet.tsv by id, the classes first."""
    rows = [
        line.split("\t")
        for line in FILE.read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    return {
        row[0]: Synset(
            row[0], tuple(row[2].split(", ")), row[3], tuple(row[4].split()), int(row[1])
        )
        for row in rows
    }


def find(name: str) -> Synset:
    """The synset with this id, or the class or ancestor with this word.

    Raises:
      UserError: it does not exist; the message names the nearest.
    """
    known = synsets()
    if name in known:
        return known[name]
    by_word = {word.lower(): synset for synset in reversed(known.values()) for word in synset.words}
    if name.lower() in by_word:
        return by_word[name.lower()]
    choices = known if re.fullmatch(r"n\d+", name) else by_word
    raise UserError(
        f"{name!r} is not a class of ImageNet 2012 or an ancestor of one"
        f"{nearest(name.lower(), choices)}; give an id such as n02109961, or a word"
    )


def paths(id: str) -> list[tuple[str, ...]]:
    """All paths from a synset up to `entity`, as ids.

    The first one follows the first hypernym at each step, as the lecture does.
    """
    parents = synsets()[id].parents
    return [(id, *rest) for parent in parents for rest in paths(parent)] or [(id,)]


@functools.cache
def ancestors(id: str) -> frozenset[str]:
    """The synset and all its ancestors."""
    return frozenset({id}.union(*map(ancestors, synsets()[id].parents)))


@functools.cache
def heights() -> dict[str, int]:
    """Height of every synset: the length of the longest path down to a class; 0 for classes."""
    found = dict.fromkeys(synsets(), 0)
    for synset in synsets().values():
        if synset.label >= 0:
            for path in paths(synset.id):
                for height, id in enumerate(path):
                    found[id] = max(found[id], height)
    return found


def lowest_common_ancestor(a: str, b: str) -> str:
    """The id of the lowest common ancestor of two synsets, which may be one of them."""
    return min(ancestors(a) & ancestors(b), key=lambda id: (heights()[id], id))


def mistake_heights(ids: Sequence[str]) -> np.ndarray:
    """The severity of each mistake [K, K] int32.

    It is the height of the lowest common ancestor of classes i and j; 0 on the diagonal. ILSVRC's
    hierarchical error is its mean over the predictions (Russakovsky et al. 2015, arXiv:1409.0575;
    Deng et al. 2010).

    Raises:
      UserError: an id is not in wordnet.tsv.
    """
    for id in ids:
        find(id)
    members: dict[str, list[int]] = {}
    for number, id in enumerate(ids):
        for above in ancestors(id):
            members.setdefault(above, []).append(number)
    costs = np.zeros((len(ids), len(ids)), np.int32)
    # Lower ancestors come later and overwrite higher ones.
    for above in sorted(members, key=heights().__getitem__, reverse=True):
        costs[np.ix_(members[above], members[above])] = heights()[above]
    np.fill_diagonal(costs, 0)
    return costs


def wordnet_ids(class_names: Sequence[str]) -> tuple[str, ...]:
    """The WordNet ids of the classes, or () if they are unknown.

    The names must all be ids, or words of ImageNet's 1,000 classes in their order.
    """
    known = synsets()
    if all(name in known for name in class_names):
        return tuple(class_names)
    ids = imagenet()
    if len(class_names) != len(ids):
        return ()
    if all(
        name == id or _plain(name) in map(str.lower, known[id].words)
        for name, id in zip(class_names, ids, strict=True)
    ):
        return ids
    return ()


@functools.cache
def imagenet() -> tuple[str, ...]:
    """The ids of ImageNet's 1,000 classes, in the order of their labels."""
    return tuple(synset.id for synset in synsets().values() if synset.label >= 0)


def _plain(name: str) -> str:
    """The first word of a class's name, as the words of a synset are written, in small letters."""
    return name.split(",")[0].replace("_", " ").strip().lower()


def labels_of(class_names: Sequence[str]) -> list[int]:
    """Which of ImageNet's 1,000 classes each name is: its label, or -1 if it is none of them.

    A name is an id, such as n02109961, or one of the words of a class, such as `Eskimo_dog`. A word
    of several classes is that of which it is the first word.

    Raises:
      UserError: it is the first word of several, or of none of several.
    """
    known, by_word = synsets(), _by_word()
    found = []
    for name in class_names:
        labels = [known[name].label] if name in known else by_word.get(_plain(name), [])
        if len(labels) > 1:
            firsts = [n for n in labels if known[imagenet()[n]].words[0].lower() == _plain(name)]
            labels = firsts if len(firsts) == 1 else labels
        if len(labels) > 1:
            raise UserError(
                f"{name!r} is the name of several classes of ImageNet: "
                f"{'; '.join(readable(imagenet()[n]) for n in labels)}; give the id",
                exit_code=1,
            )
        found.append(labels[0] if labels else -1)
    return found


@functools.cache
def _by_word() -> dict[str, list[int]]:
    """The labels of the classes that have a word, in small letters."""
    found: dict[str, list[int]] = {}
    for label, id in enumerate(imagenet()):
        for word in dict.fromkeys(map(str.lower, synsets()[id].words)):
            found.setdefault(word, []).append(label)
    return found


def show(name: str) -> str:
    """All paths of a synset, indented at each step, as in WordNet's own browser and the lecture."""
    blocks = []
    ways = paths(find(name).id)
    for number, way in enumerate(ways, 1):
        title = [f"path {number} of {len(ways)}"] if len(ways) > 1 else []
        blocks.append(
            "\n".join(
                [*title, *(f"{'  ' * depth}{id}  {synsets()[id]}" for depth, id in enumerate(way))]
            )
        )
    return "\n\n".join(blocks)


def make(folder: Path, classes: Iterable[str]) -> str:
    """The text of wordnet.tsv, from WordNet 3.0's file `data.noun` and the ids of the classes."""
    lines = (folder / "data.noun").read_text(encoding="latin-1").splitlines()
    by_id = {f"n{line[:8]}": line for line in lines if not line.startswith(" ")}
    order = {id: number for number, id in enumerate(sorted(classes))}
    wanted, rows = list(order), []
    for id in wanted:
        head, _, gloss = by_id[id].partition(" | ")
        fields = head.split()
        count = int(fields[3], 16)
        words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
        pointers = fields[5 + 2 * count :]
        above = [
            f"n{offset}"
            for symbol, offset in zip(pointers[::4], pointers[1::4], strict=False)
            if symbol in ("@", "@i")
        ]
        wanted += [parent for parent in dict.fromkeys(above) if parent not in wanted]
        meaning = gloss.strip().split('; "')[0]
        rows.append(
            "\t".join([id, str(order.get(id, -1)), ", ".join(words), meaning, " ".join(above)])
        )
    # data.noun begins with the licence, whose lines start with a space and their number.
    licence = [
        f"# {line.split(None, 1)[1].strip() if len(line.split(None, 1)) > 1 else ''}".rstrip()
        for line in lines
        if line.startswith(" ")
    ]
    return (
        "\n".join(
            [*licence, "#", "# id, class (-1: an ancestor), words, meaning, hypernyms", *rows]
        )
        + "\n"
    )


def readable(class_name: str) -> str:
    """The name, followed by its words if it is an ImageNet id: `n02109961 Eskimo dog, husky`."""
    known = synsets() if re.fullmatch(r"n\d{8}", class_name) else {}
    return (
        f"{class_name} {', '.join(known[class_name].words)}" if class_name in known else class_name
    )


if __name__ == "__main__":
    import tensorflow_datasets

    labels = Path(tensorflow_datasets.__file__).parent / "datasets" / "imagenet2012" / "labels.txt"
    sys.stdout.write(make(Path(sys.argv[1]), labels.read_text().split()))
