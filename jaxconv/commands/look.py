"""The command that draws: look."""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxconv.commands.common import natural, no_overrides, positive, set_up_jax
from jaxconv.errors import UserError

SUFFIXES = (".png", ".svg", ".pdf")


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
      says: what it shows, for the help.
      draw: (arguments, the opened network or None) -> a matplotlib figure.
      opens: whether it looks into one network; others take any number of runs and networks, or none.
    """

    says: str
    draw: Callable[[argparse.Namespace, Any], Any]
    opens: bool = True


def add(commands: Any) -> None:
    """Add look."""
    rows = "\n".join(f"  {name:12}{picture.says}" for name, picture in PICTURES.items())
    look = commands.add_parser(
        "look",
        help="pictures of what a network has learnt, and of what it does",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"PICTURE is one of\n{rows}",
    )
    look.add_argument("picture", metavar="PICTURE", choices=PICTURES, help="what to draw, see below")
    look.add_argument("--workdir", action="append", default=[], metavar="DIR", help="folder of a run; for story any number of them")
    look.add_argument("--model", action="append", default=[], metavar="NAME", help="instead, a network of jaxconv.list_models()")
    look.add_argument("--weights", default="", metavar="DIR", help="of --model, a folder of jaxconv convert; random weights without it")
    look.add_argument("--checkpoint", default="latest", metavar="WHICH", help="of the run: latest (the default), best, or a step")
    look.add_argument("--member", type=natural, default=0, metavar="N", help="of an ensemble, which network (0)")
    look.add_argument("--split", default="", metavar="NAME", help="split of the data; the config's eval_split by default")
    look.add_argument("--example", type=natural, default=0, metavar="N", help="example of the split to look at (0)")
    look.add_argument("--image", default="", metavar="FILE", help="a file to look at instead")
    look.add_argument("--layer", default="", metavar="NAME", help="of filters and activations; the first convolution by default")
    look.add_argument("--number", type=positive, default=0, metavar="N", help="how many to draw, at most; each picture has its own default")
    look.add_argument("--out", default="", metavar="FILE", help="the .png, .svg or .pdf file to write; PICTURE.png by default")
    look.set_defaults(run=_look)


def _look(args: argparse.Namespace, overrides: list[str]) -> int:
    no_overrides("look", overrides)
    out = Path(args.out or f"{args.picture}.png").expanduser()
    if out.suffix not in SUFFIXES:
        raise UserError(f"--out={args.out}: must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if not out.parent.is_dir():
        raise UserError(f"--out={args.out}: there is no folder {out.parent}")
    picture = PICTURES[args.picture]
    try:
        figure = picture.draw(args, _open(args) if picture.opens else None)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
    figure.savefig(out, dpi=120)
    print(out)
    return 0


def _open(args: argparse.Namespace) -> Any:
    if len(args.workdir) + len(args.model) != 1:
        raise UserError(f"{args.picture} looks into one network: give --workdir=RUN, or --model=NAME")
    if args.weights and not args.model:
        raise UserError(f"--weights={args.weights}: goes with --model; a run has its own")
    from jaxconv.config import default_config
    from jaxconv.train.workdir import expand, saved_config

    set_up_jax(saved_config(expand(args.workdir[0])) if args.workdir else default_config())
    from jaxconv.look.opened import open_model, open_run

    return open_run(args.workdir[0], args.checkpoint, args.member) if args.workdir else open_model(args.model[0], args.weights)


def _filters(args: argparse.Namespace, looked: Any) -> Any:
    from jaxconv.look.filters import filters, find_kernel

    layer, kernel = find_kernel(looked.model, looked.variables, looked.input_shape, args.layer)
    return filters(kernel, args.number or 96, f"{looked.title}: filters of {layer}")


def _activations(args: argparse.Namespace, looked: Any) -> Any:
    import jax

    from jaxconv.look.filters import activation_maps, find_kernel
    from jaxconv.look.inside import activations, layer_of
    from jaxconv.look.opened import element_of

    element, _ = element_of(looked, args.image, args.example, args.split)
    layers = jax.eval_shape(lambda x: activations(looked.model, looked.variables, x), looked.inputs(element[None]))
    layer = args.layer or find_kernel(looked.model, looked.variables, looked.input_shape)[0]
    layer_of(layers, layer)
    value = jax.jit(lambda v, x: activations(looked.model, v, x)[layer])(looked.variables, looked.inputs(element[None]))[0]
    names = looked.class_names if value.shape == (len(looked.class_names),) else ()
    return activation_maps(value, looked.shown(element), layer, names, args.number or 64, looked.title)


def _walk(args: argparse.Namespace, looked: Any) -> Any:
    from jaxconv.look.opened import element_of
    from jaxconv.look.walk import walk

    element, _ = element_of(looked, args.image, args.example, args.split)
    inputs = looked.inputs(element[None])[0]
    return walk(looked.model, looked.variables, inputs, looked.shown(element), looked.class_names, args.number or 8, title=looked.title)


def _lecture(args: argparse.Namespace, looked: Any) -> Any:
    from jaxconv.look.walk import lecture_walk

    return lecture_walk()


def _predictions(args: argparse.Namespace, looked: Any) -> Any:
    import numpy as np

    from jaxconv.look.examples import predictions
    from jaxconv.look.opened import element_of

    if args.image:
        elements, labels = [element_of(looked, args.image)[0]], [-1]
    else:
        count = min(args.number or 16, len(looked.source(args.split)) - args.example)
        elements, labels = zip(*(looked.example(args.example + n, args.split) for n in range(max(1, count))), strict=True)
    shown = [looked.shown(element) for element in elements]
    return predictions(shown, labels, looked.probabilities(np.stack(elements)), looked.class_names, title=looked.title)


def _mistakes(args: argparse.Namespace, looked: Any) -> Any:
    from jaxconv.look.examples import mistakes, worst

    numbers, labels, probabilities = looked.all_predictions(args.split)
    places = worst(labels, probabilities, args.number or 12)
    source = looked.source(args.split)
    shown = [looked.shown(source[int(numbers[place])]["image"]) for place in places]
    wrong = int((probabilities.argmax(axis=1) != labels).sum())
    below = f"of {wrong:,} among {len(labels):,} examples, those with the highest loss; --example takes their numbers"
    names = [f"#{numbers[place]}" for place in places]
    return mistakes(shown, labels[places], probabilities[places], looked.class_names, names, looked.title, below if wrong else "")


def _confusions(args: argparse.Namespace, looked: Any) -> Any:
    import numpy as np

    from jaxconv.look.examples import confusion_matrix, confusions, most_confused

    numbers, labels, probabilities = looked.all_predictions(args.split)
    said, most, source = probabilities.argmax(axis=1), args.number or 10, looked.source(args.split)
    counts = confusion_matrix(labels, said, len(looked.class_names))
    places = [np.flatnonzero((labels == true) & (said == other))[:4] for true, other, _ in most_confused(counts, most)]
    shown = [[looked.shown(source[int(numbers[place])]["image"]) for place in some] for some in places]
    return confusions(counts, looked.class_names, shown, most, looked.title)


def _attribution(args: argparse.Namespace, looked: Any) -> Any:
    import numpy as np

    from jaxconv.look.attribution import attribution_figure, grad_cam, gradient, guided_backpropagation, integrated_gradients, occlusion
    from jaxconv.look.opened import element_of
    from jaxconv.look.samples import short_name

    if looked.kind == "text":
        raise UserError("attribution is drawn over images, volumes and waveforms; this network reads texts")
    element, label = element_of(looked, args.image, args.example, args.split)
    probabilities, inputs = looked.probabilities(element[None])[0], looked.inputs(element[None])
    said = np.array([probabilities.argmax()])
    methods = {
        "gradient\nhow much the vote moves with each pixel": gradient,
        "guided backpropagation\nof that, what excites all the way up": guided_backpropagation,
        "integrated gradients\nshares of the vote, against a mean image": integrated_gradients,
        f"Grad-CAM\nwhere {args.layer or 'the last feature maps'} speak for it": functools.partial(grad_cam, layer=args.layer),
        "occlusion\nprobability lost under a grey square": occlusion,
    }
    maps = {name: np.asarray(method(looked.model, looked.variables, inputs, said))[0] for name, method in methods.items()}
    answer = f"{short_name(looked.class_names[said[0]])}, {probabilities[said[0]]:.1%}"
    truth = f" (it is {short_name(looked.class_names[label])})" if label not in (-1, said[0]) else ""
    return attribution_figure(looked.shown(element), maps, f"{looked.title}: {answer}{truth}")


def _patches(args: argparse.Namespace, looked: Any) -> Any:
    import jax

    from jaxconv.look.zeiler import patches_figure, strongest_patches

    if looked.kind != "image":
        raise UserError(f"patches are of images; this network reads {looked.kind}s")
    inputs = jax.jit(looked.inputs)
    batches = (inputs(elements) for elements in looked.elements(args.split))
    found = strongest_patches(looked.model, looked.variables, batches, args.layer, first=args.number or 9)
    return patches_figure(found, looked.config.data.mean, looked.config.data.std, looked.title)


def _story(args: argparse.Namespace, looked: Any) -> Any:
    from jaxconv.look.story import LECTURE, of_run, published, story
    from jaxconv.models import list_models

    names = [name for pattern in args.model for name in (list_models(pattern) or [pattern])]
    if not names and not args.workdir:
        names = list(LECTURE)
    return story([*(published(name) for name in names), *(of_run(workdir) for workdir in args.workdir)])


def _winners(args: argparse.Namespace, looked: Any) -> Any:
    from jaxconv.look.story import winners

    return winners()


PICTURES = {
    "filters": Picture("filters of the first convolution, or of --layer", _filters),
    "activations": Picture("what --layer makes of an image", _activations),
    "walk": Picture("an image on its way through the network, stage by stage, to the votes", _walk),
    "attribution": Picture("which pixels of an image its most probable class comes from", _attribution),
    "patches": Picture("what of a split excites the feature maps of --layer most, with its deconvnet projection", _patches),
    "predictions": Picture("examples with their three most probable classes", _predictions),
    "mistakes": Picture("the mistakes with the highest loss", _mistakes),
    "confusions": Picture("which classes are taken for which, with examples", _confusions),
    "story": Picture("error against year, depth, weights and multiply-adds, of any --workdir and --model, such as 'vgg*'", _story, False),
    "winners": Picture("ILSVRC's winners, with their depth", _winners, False),
    "lecture": Picture("the lecture's X, its three features and its votes", _lecture, False),
}
