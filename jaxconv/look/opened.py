"""A network opened for inspection: module, variables, preprocessing and evaluation examples."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxconv import moved
from jaxconv.config import default_config, set_key
from jaxconv.data.interface import Batch, DamagedError, Source
from jaxconv.data.loading import Reader
from jaxconv.data.signals import Alphabet, decode_text, letters_of
from jaxconv.data.sources import as_files, open_given, open_source, reading_of
from jaxconv.data.wordnet import synsets
from jaxconv.errors import UserError, in_words, short, some
from jaxconv.files import expand
from jaxconv.look.overlays import attribution_figure, text_attribution_figure
from jaxconv.models import abstract_variables, create_model, usual_task
from jaxconv.notebook import html_table
from jaxconv.own import is_own, shown_name
from jaxconv.predict import GivenRecords, find_items
from jaxconv.tasks import Task, open_task
from jaxconv.train.ensemble import members_of
from jaxconv.train.initial import fit
from jaxconv.train.other_data import Overrides, reading
from jaxconv.train.restore import restore_run
from jaxconv.train.transforms import make_preprocessing
from jaxconv.train.workdir import opened_config, saved_config, saved_data
from jaxconv.weights.export import element_shape
from jaxconv.weights.preprocessing import settings_of
from jaxconv.weights.pretrained import find_weights, preprocessing_of, read_weights

# ImageNet's mean and standard deviation, and the crop ratio, of torchvision's weights and our
# recipes.
_MEAN, _STD, _CROP_RATIO = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875


@dataclasses.dataclass(frozen=True, repr=False)
class OpenedNetwork:
    """A network opened for inspection.

    Attributes:
      title: a short description, for the top of a figure.
      model: a Linen module, called as (x, train=False).
      variables: the variables of the model; of one member if the run is an ensemble.
      preprocess: {"image": elements [N, ...]} -> the same with inputs [N, *spatial, C] float32;
        can be called under `jit`.
      task: the task it was trained for.
      class_names: K names from the run; empty if the task has none.
      config: the config of the run.
      data: a description of the data: `image_shape` of an input, `kind` (image, signal or text),
        `class_names`.
      folder: the workdir; None if no run was opened.
      examples: what to look at instead of the splits of the config's source.
    """

    title: str
    model: nn.Module
    variables: Any
    preprocess: Callable[[Batch], Batch]
    task: Task
    class_names: tuple[str, ...]
    config: Any
    data: dict[str, Any]
    folder: Path | None = None
    examples: Source | None = None

    def __repr__(self) -> str:
        return f"<OpenedNetwork {self.title}>"

    def _repr_html_(self) -> str:
        config, rows = self.config, [("", "")]
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))
        rows += [("workdir", str(self.folder))] if self.folder else []
        rows += [
            ("network", shown_name(config.model.name)),
            ("input", f"{self.kind}, {' x '.join(map(str, self.input_shape))}"),
            ("task", shown_name(config.task.name)),
            ("parameters", f"{parameters:,}"),
        ]
        if self.class_names:
            rows.append(("classes", f"{len(self.class_names):,}: {some(self.class_names, 10)}"))
        if self.folder:
            rows.append(("data", f"{shown_name(config.data.source)}, {config.data.eval_split}"))
        return html_table(self.title, rows, texts=2)

    @property
    def kind(self) -> str:
        """`image`, `signal` or `text`."""
        return self.data["kind"]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(*spatial, C) of an input of the network."""
        shape = element_shape(self.config, self.data)
        return (*shape, self.data["image_shape"][-1]) if self.kind == "text" else shape

    def inputs(self, elements: np.ndarray) -> jax.Array:
        """Stored elements [N, ...] -> inputs [N, *spatial, C] float32."""
        return self.preprocess({"image": jnp.asarray(elements)})["image"]

    @functools.cached_property
    def nothing(self) -> Any:
        """An input without content: a mean image or an empty text.

        [1, *spatial, C], or one value for all of it.
        """
        return (
            self.inputs(np.zeros((1, self.input_shape[0]), np.uint8))
            if self.kind == "text"
            else 0.0
        )

    @property
    def hiding(self) -> dict[str, Any]:
        """Arguments of `occlusion`: how it hides a part of an input.

        Hides a quarter of an image with a grey square, or five letters of a text.
        """
        return {
            "fill": self.nothing,
            "window": min(5, self.input_shape[0]) if self.kind == "text" else 0,
        }

    @functools.cached_property
    def _served(self) -> Callable[[Any, Any], dict[str, jax.Array]]:
        return jax.jit(
            lambda variables, x: self.task.serve(
                self.model.apply(variables, self.inputs(x), train=False)
            )
        )

    def served(self, elements: np.ndarray) -> dict[str, np.ndarray]:
        """Elements [N, ...] -> the outputs of `Task.serve`, [N, ...] by name.

        Compiled once for each N.
        """
        return jax.tree.map(np.asarray, self._served(self.variables, elements))

    def predictions_figure(self, examples: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
        """A figure of examples, each with `image` and targets, and the network's predictions."""
        served = self.served(np.stack([example["image"] for example in examples]))
        targets = [
            {name: example[name] for name in self.task.needs if name in example}
            for example in examples
        ]
        said = [{name: v[n] for name, v in served.items()} for n in range(len(examples))]
        shown = [self.shown(example["image"]) for example in examples]
        return self.task.draw(shown, targets, said, title)

    def probabilities(self, elements: np.ndarray) -> np.ndarray:
        """Elements [N, ...] -> class probabilities [N, K] float32.

        Raises:
          UserError: the network does not classify.
        """
        served = self.served(elements)
        if "probabilities" not in served:
            raise UserError(
                f"{self.title} does not classify; it predicts {', '.join(served)}", exit_code=1
            )
        return served["probabilities"]

    def shown(self, element: np.ndarray) -> Any:
        """An element as it is drawn: a text as a string, anything else unchanged."""
        return decode_text(element, self._alphabet) if self.kind == "text" else element

    @property
    def _alphabet(self) -> Alphabet:
        """How a text becomes codes."""
        return tuple(self.data.get("words", ())) or self.config.data.text.alphabet

    def explained(self, element: np.ndarray, maps: Mapping[str, np.ndarray], title: str) -> Figure:
        """A figure of an element with attribution maps, see `overlays`."""
        if self.kind == "text":
            return text_attribution_figure(letters_of(element, self._alphabet), maps, title)
        return attribution_figure(element, maps, title)

    def source(self, split: str = "") -> Source:
        """The examples of a split, by default the config's `data.eval_split`.

        Examples in files are read on access.

        Raises:
          UserError: no run was opened, or its data cannot be read.
        """
        if self.examples is not None:
            return self.examples
        if self.folder is None:
            raise UserError(
                f"{self.title} has no examples; give --image=FILE, or a run with --workdir=RUN"
            )
        data = as_files(self.config.data)
        with reading(self.config):
            return open_source(data, split or self.config.data.eval_split, like=self.data)

    def example(self, number: int, split: str = "") -> tuple[np.ndarray, int]:
        """The element [...] and label of one example of a split; the label is -1 if it has none.

        Raises:
          UserError: the example does not exist or cannot be read.
        """
        example = self.read_example(number, split)
        return example["image"], int(example.get("label", -1))

    def read_example(self, number: int, split: str = "") -> dict[str, Any]:
        """`image` and targets of one example of a split; raises as `example`."""
        source = self.source(split)
        if not 0 <= number < len(source):
            raise UserError(
                f"--example={number}: the split has {len(source):,} examples, 0 to "
                f"{len(source) - 1}"
            )
        try:
            return source[number]
        except DamagedError as error:
            raise UserError(f"{source.name(number)}: {error}", exit_code=1) from error

    def read(self, file: str) -> np.ndarray:
        """The element [...] of a file, preprocessed like the run's evaluation examples.

        Of a text file this is the first line; a clip is its folder.

        Raises:
          UserError: the file cannot be read, or its contents do not match the network's input.
        """
        frames = self.config.data.frames
        if Path(file).is_dir() and not frames:
            raise UserError(f"{file}: is a folder; give a single file")
        shape = element_shape(self.config, self.data)
        items = find_items([file], self.kind, frames)
        if len(items) > 1 and items[0].frames:
            raise UserError(f"{file}: holds {len(items)} clips; give one, such as {items[0]}")
        source = open_given(
            GivenRecords(items),
            reading_of(self.config.data, self.kind, shape, self.data),
            self.kind,
            shape,
        )
        try:
            return source[0]["image"]
        except DamagedError as error:
            raise UserError(f"{file}: {error}", exit_code=1) from error

    def elements(self, split: str = "", batch_size: int = 0) -> Iterator[np.ndarray]:
        """All readable examples of a split, each once, in batches [B, ...]."""
        source, size = self.source(split), batch_size or self.config.eval.batch_size
        reader = Reader(source, self.config.data.threads, self.config.data.damaged_share)
        for batch in reader.eval_batches(min(size, len(source))):
            yield batch["image"][batch["mask"] > 0]


def open_run(
    workdir: str | os.PathLike[str],
    checkpoint: str = "latest",
    member: int = 0,
    source: Source | None = None,
    overrides: Overrides = (),
) -> OpenedNetwork:
    """Open the trained network of a run.

    Args:
      workdir: the workdir of the run.
      checkpoint: `latest`, `best`, or a step.
      member: the index of the ensemble member, from 0.
      source: examples to look at instead of those of the config's source.
      overrides: `KEY=VALUE` each or values by key, such as data.source=folder:DIR,
        to look at other data, see train/other_data.py.

    Raises:
      UserError: the run, checkpoint or member does not exist, or the run's code is not trusted.
    """
    folder = expand(workdir)
    config, data = opened_config(folder, overrides), saved_data(folder)
    members = members_of(config)
    count = len(members.names) if members else 1
    if not 0 <= member < count:
        has = (
            f"the ensemble has {count} members, 0 to {count - 1}"
            if members
            else "the run has one network, not an ensemble"
        )
        raise UserError(f"--member={member}: {has}")
    state, step = restore_run(folder, checkpoint, config=config)
    variables = jax.tree.map(lambda x: x[member], state.variables) if members else state.variables
    task = open_task(config, data)
    model = task.model()
    preprocess = make_preprocessing(config, data, one_hot=True)
    title = (
        f"{folder.name}: {short(shown_name(saved_config(folder).model.name), 32)}, "
        f"{members.names[member] + ', ' if members else ''}step {step:,}"
    )
    return OpenedNetwork(
        title,
        model,
        variables,
        preprocess,
        task,
        tuple(data["class_names"]),
        config,
        data,
        folder,
        source,
    )


def open_model(name: str, weights: str = "") -> OpenedNetwork:
    """Open a network by name, for the task it was published for.

    Args:
      name: one of `list_models()`, `text:` and a text, or your own network.
      weights: a name such as `tv2_in1k`, a file or a folder, see weights/pretrained.py, whose
        preprocessing is used; by default the weights are random.

    Raises:
      UserError: the network does not exist, or the weights do not fit it.
    """
    try:
        shape, classes = usual_task(name)
        model = create_model(name, classes)
        fresh = abstract_variables(model, (1, *shape))
    except ValueError as error:
        raise UserError(f"--model={name}: {error}") from error
    except Exception as error:  # a custom network may raise anything
        if not is_own(name):
            raise
        raise UserError(f"--model={name}: fails: {in_words(error)}") from error
    if weights:
        variables, title = (
            _named(weights, name, fresh, classes),
            f"{short(name, 32)}, weights of {Path(weights).name}",
        )
    else:
        init = jax.jit(functools.partial(model.init, train=False))
        variables, title = (
            init(jax.random.key(0), jnp.zeros((1, *shape))),
            f"{short(name, 32)}, random weights",
        )
    config = default_config()
    config.model.name = name
    if shape[-1] == 3 and shape[0] > 32:
        config.data.mean, config.data.std, config.data.crop_ratio = _MEAN, _STD, _CROP_RATIO
    config.data.image_size = shape[0]
    wants = preprocessing_of(find_weights(weights, (name,), "--weights")) if weights else None
    for key, value in settings_of(wants, sized=True).items() if wants else ():
        if not key.endswith("image_size"):  # the network's own is opened
            set_key(config, key, repr(value))
    names = [
        ", ".join(synset.words)
        for synset in sorted(synsets().values(), key=lambda synset: synset.label)
        if synset.label >= 0
    ]
    names = names if classes == len(names) else [f"class {k}" for k in range(classes)]
    data = {"image_shape": list(shape), "kind": "image", "cropped": False, "class_names": names}
    task = open_task(config, data)
    preprocess = make_preprocessing(config, data)
    return OpenedNetwork(title, model, variables, preprocess, task, tuple(names), config, data)


def _named(weights: str, name: str, fresh: Any, classes: int) -> Any:
    variables, what = read_weights(weights, (name,), "--weights")
    try:
        fitted, said = fit(variables, fresh, classes)
        if said:
            raise ValueError("; ".join(said))
    except ValueError as error:
        raise UserError(
            f"--weights={weights}: holds {what}, which do not fit {name}: {error}"
        ) from error
    return jax.tree.map(jnp.asarray, fitted)


def element_of(
    looked: OpenedNetwork, file: str = "", example: int = 0, split: str = ""
) -> tuple[np.ndarray, int]:
    """The element [...] and label of a file or, without a file, of an example of a split.

    The label of a file is -1.

    Raises:
      UserError: the file or example does not exist, or cannot be read.
    """
    return (looked.read(file), -1) if file else looked.example(example, split)


__getattr__ = moved.names_of(__name__)
