"""Commands about data and experiments: data, prepare, wordnet, experiments."""

import argparse
import itertools
from typing import Any

from jaxconv.commands.common import add_json, no_overrides, positive, print_json, set_up_jax
from jaxconv.errors import padded


def add(commands: Any) -> None:
    """Add data, prepare, wordnet and experiments."""
    data = commands.add_parser(
        "data",
        help="inspect a data source: its contents, augmented examples, and loading speed",
        epilog="Set any key of the config by --config.KEY=VALUE, such as "
        "--config.data.image_size=224.",
    )
    data.add_argument(
        "source",
        metavar="SOURCE",
        help="as in config.data.source: folder:DIR, masks:DIR, coco:DIR, tfds:NAME ...; with "
        "--config.task.name=TASK the targets of that task",
    )
    data.add_argument(
        "--split",
        default="",
        metavar="NAME",
        help="split of the data; the config's train_split by default",
    )
    data.add_argument(
        "--config",
        default="",
        metavar="FILE.py[:ARGUMENT]",
        help="an experiment whose augmentation and settings to use",
    )
    data.add_argument(
        "--png",
        default="samples.png",
        metavar="FILE",
        help="file for a grid of augmented samples (samples.png)",
    )
    data.add_argument(
        "--examples",
        type=positive,
        default=2000,
        metavar="N",
        help="how many examples to read for sizes, mean and std (2000)",
    )
    add_json(data)
    data.set_defaults(run=_data)

    prepare = commands.add_parser(
        "prepare", help="prepare a TensorFlow Datasets set, for the source tfds:NAME"
    )
    prepare.add_argument(
        "name", metavar="NAME", help="name of the set in TFDS, such as cifar10 or imagenet2012"
    )
    prepare.add_argument(
        "--data_dir",
        default="",
        metavar="DIR",
        help="where to put it; TFDS's own folder by default",
    )
    prepare.add_argument(
        "--manual_dir",
        default="",
        metavar="DIR",
        help="folder of files that you downloaded, such as ImageNet's two tars",
    )
    prepare.add_argument(
        "--partial", action="store_true", help="accept ImageNet tars with missing classes or images"
    )
    prepare.set_defaults(run=_prepare)

    wordnet = commands.add_parser(
        "wordnet", help="look up an ImageNet class in WordNet, with all its ancestors"
    )
    wordnet.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="an id such as n02109961, or a word; for two, also their lowest common ancestor",
    )
    wordnet.set_defaults(run=_wordnet)

    experiments = commands.add_parser(
        "experiments",
        help="list the experiments that come with jaxconv, for --config=jaxconv:NAME",
    )
    experiments.set_defaults(run=_experiments)


def _data(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxconv.checks import check_config
    from jaxconv.config import default_config, load_config, set_key

    config = load_config(args.config, overrides) if args.config else default_config()
    for override in [] if args.config else overrides:
        key, _, text = override.partition("=")
        set_key(config, key, text)
    config.data.source = args.source
    if not config.steps and not config.epochs:
        config.steps = 1  # required by check_config; nothing is trained
    check_config(config)
    from jaxconv.files import check_file

    png = check_file("png", args.png, (".png",))
    set_up_jax(config)
    from jaxconv.survey import show

    rows, result = show(config, args.split or config.data.train_split, args.examples, png)
    for name, text in rows:
        print(f"{padded(name, 27)} {text}")
    print_json(result, args.json)
    return 0


def _prepare(args: argparse.Namespace, overrides: list[str]) -> int:
    no_overrides("prepare", overrides)
    from jaxconv.data.prepare import prepare
    from jaxconv.train.watch import announce_to

    announce_to()
    print(prepare(args.name, args.data_dir, args.manual_dir, args.partial))
    return 0


def _wordnet(args: argparse.Namespace, overrides: list[str]) -> int:
    no_overrides("wordnet", overrides)
    from jaxconv.data import wordnet

    print("\n\n".join(map(wordnet.show, args.names)))
    ids = [wordnet.find(name).id for name in args.names]
    for a, b in itertools.pairwise(ids):
        lowest = wordnet.lowest_common_ancestor(a, b)
        print(
            f"\n{a} and {b}: {lowest}  {wordnet.synsets()[lowest]}, at height "
            f"{wordnet.heights()[lowest]}"
        )
    return 0


def _experiments(args: argparse.Namespace, overrides: list[str]) -> int:
    no_overrides("experiments", overrides)
    from jaxconv.packaged import PREFIX, experiments

    for one in experiments():
        print(f"{PREFIX}{one.name}\n    {one.title}")
        for what, words in (("time", one.time), ("result", one.result)):
            if words:
                print(f"    {what:7} {words}")
    print("\njaxconv train --config=jaxconv:xo --workdir=DIR starts with the first network to try")
    return 0
