"""The command that draws pictures: look."""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from jaxconv.commands.common import add_trust, natural, positive, set_up_jax
from jaxconv.errors import UserError

SUFFIXES = (".png", ".svg", ".pdf")


@dataclasses.dataclass(frozen=True)
class PictureOption:
    """One picture.

    Attributes:
      says: what it shows, for the help text.
      draw: (arguments, the opened network or None) -> a matplotlib figure.
      takes: its options besides --out. A picture with `checkpoint` looks into one network, given by
        --workdir or --model; others take any number, or none.
    """

    says: str
    draw: Callable[[argparse.Namespace, Any], Any]
    takes: tuple[str, ...] = ()

    @property
    def shows_data(self) -> bool:
        """Whether it shows examples of a split."""
        return "split" in self.takes

    @property
    def opens(self) -> bool:
        """Whether it looks into a single network."""
        return "checkpoint" in self.takes


# Options of all pictures of one network, and of those that also show one example.
NETWORK = ("workdir", "model", "weights", "checkpoint", "member")
EXAMPLE = (*NETWORK, "split", "example", "image")
OPTIONS = (*EXAMPLE, "layer", "number")


def add(commands: Any) -> None:
    """Add look."""
    rows = "\n".join(f"  {name:12}{picture.says}" for name, picture in PICTURES.items())
    look = commands.add_parser(
        "look",
        help="draw what a network has learned and how it works",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"PICTURE is one of:\n{rows}",
    )
    look.add_argument(
        "picture", metavar="PICTURE", choices=PICTURES, help="what to draw, see below"
    )
    look.add_argument(
        "--workdir",
        action="append",
        default=[],
        metavar="DIR",
        help="folder of a run; story takes any number of them",
    )
    look.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME",
        help="a network of jaxconv.list_models(), instead of a run",
    )
    look.add_argument(
        "--weights",
        default="",
        metavar="DIR",
        help="of --model: a name of `jaxconv weights`, a file or a folder; random without it",
    )
    look.add_argument(
        "--checkpoint",
        default="latest",
        metavar="WHICH",
        help="checkpoint of the run: latest (the default), best, or a step",
    )
    look.add_argument(
        "--member", type=natural, default=0, metavar="N", help="which network of an ensemble (0)"
    )
    look.add_argument(
        "--split",
        default="",
        metavar="NAME",
        help="split of the data; the config's eval_split by default",
    )
    look.add_argument(
        "--example",
        type=natural,
        default=0,
        metavar="N",
        help="example of the split to look at (0)",
    )
    look.add_argument(
        "--image", default="", metavar="FILE", help="a file to look at instead of an example"
    )
    look.add_argument(
        "--layer",
        default="",
        metavar="NAME",
        help="layer to look at; the default depends on the picture",
    )
    look.add_argument(
        "--number",
        type=positive,
        default=0,
        metavar="N",
        help="how many to draw at most; the default depends on the picture",
    )
    look.add_argument(
        "--out",
        default="",
        metavar="FILE",
        help="file to write: .png, .svg or .pdf; PICTURE.png by default",
    )
    add_trust(look)
    look.set_defaults(run=_look, defaults={option: look.get_default(option) for option in OPTIONS})


def _look(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxconv.files import check_file, whole_file
    from jaxconv.train.other_data import check_takes

    check_takes("look", overrides)
    if overrides and not (PICTURES[args.picture].shows_data and args.workdir):
        raise UserError(f"--config.{overrides[0]}: {args.picture} shows no data of a run")
    args.overrides = overrides

    name = args.out or f"{args.picture}.png"
    out = check_file("out", name, SUFFIXES)
    picture = PICTURES[args.picture]
    _check(args)
    try:
        figure = picture.draw(args, _open(args) if picture.opens else None)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
    from jaxconv.drawing.fonts import save_figure

    with whole_file(out) as temporary:
        save_figure(figure, temporary, dpi=120)
    print(name)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise UserError for options that the picture does not take."""
    takes = PICTURES[args.picture].takes
    given = [name for name, default in args.defaults.items() if getattr(args, name) != default]
    for name in given:
        if name not in takes:
            choices = ", ".join(f"--{option}" for option in (*takes, "out"))
            raise UserError(f"--{name}: {args.picture} does not take it; it takes {choices}")
    for name, other in (
        ("weights", "workdir"),
        ("checkpoint", "model"),
        ("member", "model"),
        ("example", "image"),
        ("split", "image"),
    ):
        if name in given and other in given:
            raise UserError(f"--{name} and --{other}: give only one of them")


def _open(args: argparse.Namespace) -> Any:
    if len(args.workdir) + len(args.model) != 1:
        raise UserError(f"{args.picture} needs one network: give --workdir=DIR or --model=NAME")
    from jaxconv.config import default_config
    from jaxconv.files import expand
    from jaxconv.train.workdir import saved_config

    set_up_jax(saved_config(expand(args.workdir[0])) if args.workdir else default_config())
    from jaxconv.look.opened import open_model, open_run

    return (
        open_run(args.workdir[0], args.checkpoint, args.member, overrides=args.overrides)
        if args.workdir
        else open_model(args.model[0], args.weights)
    )


def _filters(args: argparse.Namespace, looked: Any) -> Any:
    from jaxconv.look.filters import filters, find_kernel

    layer, kernel = find_kernel(looked.model, looked.variables, looked.input_shape, args.layer)
    return filters(kernel, args.number or 96, f"{looked.title}: filters of {layer}")


def _activations(args: argparse.Namespace, looked: Any) -> Any:
    import jax

    from jaxconv.inspect.inside import activations, layer_of
    from jaxconv.look.filters import activation_maps, find_kernel
    from jaxconv.look.opened import element_of

    element, _ = element_of(looked, args.image, args.example, args.split)
    layers = jax.eval_shape(
        lambda x: activations(looked.model, looked.variables, x), looked.inputs(element[None])
    )
    layer = args.layer or find_kernel(looked.model, looked.variables, looked.input_shape)[0]
    layer_of(layers, layer)
    value = jax.jit(lambda v, x: activations(looked.model, v, x)[layer])(
        looked.variables, looked.inputs(element[None])
    )[0]
    names = looked.class_names if value.shape == (len(looked.class_names),) else ()
    return activation_maps(
        value, looked.shown(element), layer, names, args.number or 64, looked.title
    )


def _walk(args: argparse.Namespace, looked: Any) -> Any:
    from jaxconv.look.opened import element_of
    from jaxconv.look.walk import walk

    element, _ = element_of(looked, args.image, args.example, args.split)
    inputs = looked.inputs(element[None])[0]
    return walk(
        looked.model,
        looked.variables,
        inputs,
        looked.shown(element),
        looked.class_names,
        args.number or 8,
        title=looked.title,
    )


def _lecture(args: argparse.Namespace, looked: Any) -> Any:
    from jaxconv.look.lecture import lecture_walk

    return lecture_walk()


def _predictions(args: argparse.Namespace, looked: Any) -> Any:
    from jaxconv.data.interface import evenly
    from jaxconv.look.opened import element_of

    if args.image:
        examples = [{"image": element_of(looked, args.image)[0]}]
    else:
        # If the number does not exist, `read_example` reports it.
        total = max(len(looked.source(args.split)), args.example + 1)
        # Evenly spread, because a folder's examples are sorted by class.
        places = evenly(total, args.number or 16, args.example)
        examples = [looked.read_example(int(place), args.split) for place in places]
    return looked.predictions_figure(examples, looked.title)


def _of_task(args: argparse.Namespace, looked: Any) -> Any:
    """A picture of an evaluated split that the task provides."""
    pictures = looked.task.pictures
    if args.picture not in pictures:
        raise UserError(
            f"{args.picture}: the task {looked.config.task.name} does not have this picture; it "
            f"has {', '.join([*pictures, 'predictions', 'worst'])}"
        )
    evaluation = _evaluated(args, looked)

    def shown(number: int) -> Any:
        return looked.shown(evaluation.source.read(number)["image"])

    return pictures[args.picture](evaluation, shown, args.number, looked.title)


def _worst(args: argparse.Namespace, looked: Any) -> Any:
    evaluation = _evaluated(args, looked)
    places = looked.task.worst(evaluation.outcomes, args.number or 8)
    numbers = [int(evaluation.outcomes.index[place]) for place in places]
    examples = [evaluation.source.read(number) for number in numbers]
    return looked.predictions_figure(examples, f"{looked.title}: the worst")


def _evaluated(args: argparse.Namespace, looked: Any) -> Any:
    """The evaluation of a split; of the member of an ensemble that is looked at."""
    from jaxconv.evaluation.evaluation import evaluate_run
    from jaxconv.train.ensemble import members_of

    looked.source(args.split)  # fails with a clear message if the data is missing
    evaluation = evaluate_run(
        args.workdir[0], args.split, args.checkpoint, overrides=args.overrides
    )
    members = members_of(looked.config)
    if members is not None:
        name = members.names[args.member]
        if name not in evaluation.members:
            raise UserError(
                f"--member={args.member}: {name} has diverged and predicts nothing; choose another",
                exit_code=1,
            )
        evaluation = dataclasses.replace(evaluation, outcomes=evaluation.members[name])
    return evaluation


def _attribution(args: argparse.Namespace, looked: Any) -> Any:
    import numpy as np

    from jaxconv.drawing.samples import short_name
    from jaxconv.inspect.attribution import (
        grad_cam,
        gradient,
        guided_backpropagation,
        integrated_gradients,
        occlusion,
    )
    from jaxconv.look.opened import element_of

    element, label = element_of(looked, args.image, args.example, args.split)
    probabilities, inputs = looked.probabilities(element[None])[0], looked.inputs(element[None])
    said = np.array([probabilities.argmax()])
    text = looked.kind == "text"
    # A letter is either present or not, so its value has no useful gradient.
    of_values: dict[str, Any] = {
        "gradient\nhow much the logit moves with each pixel": gradient,
        "guided backpropagation\nof that, what excites all the way up": guided_backpropagation,
    }
    baseline = "an empty text" if text else "a mean image"
    speaks = f"{args.layer} speaks" if args.layer else "the last feature maps speak"
    hidden = "without some letters" if text else "under a grey square"
    integrated = functools.partial(integrated_gradients, baseline=looked.nothing)
    methods = ({} if text else of_values) | {
        f"integrated gradients\nshares of the logit, against {baseline}": integrated,
        f"Grad-CAM\nwhere {speaks} for it": functools.partial(grad_cam, layer=args.layer),
        f"occlusion\nprobability lost {hidden}": functools.partial(occlusion, **looked.hiding),
    }
    maps = {
        name: np.asarray(method(looked.model, looked.variables, inputs, said))[0]
        for name, method in methods.items()
    }
    answer = f"{short_name(looked.class_names[said[0]])}, {probabilities[said[0]]:.1%}"
    truth = (
        f" (it is {short_name(looked.class_names[label])})" if label not in (-1, said[0]) else ""
    )
    return looked.explained(element, maps, f"{looked.title}: {answer}{truth}")


def _patches(args: argparse.Namespace, looked: Any) -> Any:
    import jax

    from jaxconv.inspect.zeiler import patches_figure, strongest_patches

    if looked.kind != "image":
        raise UserError(f"patches: needs a network of images; this one reads {looked.kind}s")
    inputs = jax.jit(looked.inputs)
    batches = (inputs(elements) for elements in looked.elements(args.split))
    found = strongest_patches(
        looked.model, looked.variables, batches, args.layer, first=args.number or 9
    )
    return patches_figure(found, looked.config.data.mean, looked.config.data.std, looked.title)


def _story(args: argparse.Namespace, looked: Any) -> Any:
    from jaxconv.look.story import LECTURE, of_run, published, story
    from jaxconv.models import MODELS, list_models
    from jaxconv.train.watch import announce_to

    announce_to()
    names = list(LECTURE) if not args.model and not args.workdir else []
    for pattern in args.model:
        # A pattern selects networks with a known error; a single name without one is refused.
        names += [
            name for name in list_models(pattern) if name == pattern or MODELS[name].errors
        ] or [pattern]
    return story(
        [*(published(name) for name in names), *(of_run(workdir) for workdir in args.workdir)]
    )


def _winners(args: argparse.Namespace, looked: Any) -> Any:
    from jaxconv.look.story import winners

    return winners()


PICTURES = {
    "filters": PictureOption(
        "filters of the first convolution, or of --layer", _filters, (*NETWORK, "layer", "number")
    ),
    "activations": PictureOption(
        "the feature maps of --layer for an image", _activations, (*EXAMPLE, "layer", "number")
    ),
    "walk": PictureOption(
        "an image on its way through the network, stage by stage, to the votes",
        _walk,
        (*EXAMPLE, "number"),
    ),
    "attribution": PictureOption(
        "which pixels, samples or letters the most probable class is based on",
        _attribution,
        (*EXAMPLE, "layer"),
    ),
    "patches": PictureOption(
        "patches of a split that excite --layer most, with deconvnet projections",
        _patches,
        (*NETWORK, "split", "layer", "number"),
    ),
    "predictions": PictureOption(
        "examples with their three most probable classes", _predictions, (*EXAMPLE, "number")
    ),
    "mistakes": PictureOption(
        "the mistakes with the highest loss, or what each kind of mistake costs a detector",
        _of_task,
        (*NETWORK, "split", "number"),
    ),
    "worst": PictureOption(
        "the examples that are predicted worst, with their predictions",
        _worst,
        (*NETWORK, "split", "number"),
    ),
    "classes": PictureOption("accuracy, IoU or AP of each class", _of_task, (*NETWORK, "split")),
    "precision": PictureOption(
        "a detector's precision against its recall", _of_task, (*NETWORK, "split")
    ),
    "confusions": PictureOption(
        "which classes are mistaken for which, with examples",
        _of_task,
        (*NETWORK, "split", "number"),
    ),
    "story": PictureOption(
        "error against year, depth, weights and multiply-adds, for any --workdir and --model, such "
        "as 'vgg*'",
        _story,
        ("workdir", "model"),
    ),
    "winners": PictureOption(
        "ILSVRC's winners (and VGG, second in 2014), with their depth", _winners
    ),
    "lecture": PictureOption("the lecture's X, its three features and its votes", _lecture),
}
