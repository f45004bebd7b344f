"""Export a trained network, its weights and its preprocessing as one StableHLO program.

The program takes any batch size and runs on several platforms.

    jaxconv export --workdir=RUN --out=DIR
    load_exported("DIR").predict(images)    # [N, H, W, C] uint8 -> probabilities [N, K] float32
    load_exported("DIR").serve(images)      # all outputs of the task, by name

DIR/program.bin   elements [b, ...] -> {"probabilities": [b, K], "logits": [b, K]} float32,
                  serialized by jax.export. It needs only JAX:
                  content = bytearray(open("DIR/program.bin", "rb").read())
                  jax.export.deserialize(content).call(images)["probabilities"]
DIR/model.json    class names; kind, shape and dtype of an element, and how a file becomes one;
                  platforms; step, versions, config

An element is a decoded and cropped image [H, W, C] uint8, a float32 signal (uint8 values are
divided by 255), or the codes of a text [L] uint8, of words uint16. The weights are the averaged
ones if the run kept any. Probabilities are the softmax of the logits, whatever the loss of the run.
"""

import dataclasses
import functools
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.export
import numpy as np

from jaxconv.compiling import compiler_options
from jaxconv.config import default_config
from jaxconv.data.signals import to_unit
from jaxconv.data.sources import reading_of
from jaxconv.errors import UserError, in_words, nearest
from jaxconv.evaluation.sliding import images_of, total_stride
from jaxconv.files import check_new, expand, new_folder
from jaxconv.models.requested import Complete
from jaxconv.tasks import TASKS, Task, open_task
from jaxconv.train.ensemble import form_of_run, members_of, over_members
from jaxconv.train.other_data import Overrides
from jaxconv.train.restore import restore_run
from jaxconv.train.transforms import make_preprocessing
from jaxconv.train.workdir import opened_config, saved_config, saved_data, write_json
from jaxconv.version import __version__

PLATFORMS = ("cpu", "cuda", "tpu")
_ALL_PLATFORMS = (*PLATFORMS, "rocm")
# Version of model.json; increase it whenever today's reader could not read the new file.
_FORMAT = 1
_KEYS = {"format", "class_names", "kind", "input_shape", "dtype", "reading", "step"}
# A flatbuffer holds 2 GiB, part of which is not the program.
_MOST_BYTES = 2**31 - 2**20


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained network with its preprocessing.

    Attributes:
      description: the contents of model.json.
      program: elements [N, *input_shape] -> {"probabilities": [N, K], "logits": [N, K]} float32,
        compiled for each new N.
      step: 0; or, if the program has outputs for each pixel of images of any size, the stride of
        its coarsest feature maps, in pixels.
    """

    description: dict[str, Any]
    program: Callable[[Any], dict[str, jax.Array]]
    step: int = 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""
        return tuple(self.description["class_names"])

    @property
    def kind(self) -> str:
        """`image`, `signal` or `text`."""
        return self.description["kind"]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one element: (H, W, C) for images."""
        return tuple(self.description["input_shape"])

    @property
    def frames(self) -> int:
        """Of a clip that is read from a folder of images; 0 for other networks."""
        return self.description["reading"].get("frames", 0)

    @property
    def dtype(self) -> str:
        """Of an element."""
        return self.description["dtype"]

    def serve(self, elements: Any) -> dict[str, np.ndarray]:
        """The task's outputs, by name, for elements [N, *input_shape].

        Signals may have any floating type, or uint8.

        Raises:
          UserError: the elements have another shape or dtype.
        """
        elements = np.asarray(elements)
        if self.kind == "signal" and (
            elements.dtype == np.uint8 or np.issubdtype(elements.dtype, np.floating)
        ):
            elements = to_unit(elements)
        fits = elements.shape[1:] == self.input_shape or (
            self.step
            and elements.ndim == 1 + len(self.input_shape)
            and elements.shape[-1] == self.input_shape[-1]
        )
        if not fits or elements.dtype != self.dtype or not len(elements):
            wanted = ", ".join(map(str, ("N", *self.input_shape)))
            raise UserError(
                f"the {self.kind}s are {elements.dtype} {list(elements.shape)}; the network takes "
                f"{self.dtype} [{wanted}]"
            )
        return {name: np.asarray(value) for name, value in self.program(elements).items()}

    def predict(self, elements: Any) -> np.ndarray:
        """Probabilities [N, K] float32 of the classes; see `serve`.

        Raises:
          UserError: as in `serve`, or the network is not a classifier.
        """
        served = self.serve(elements)
        if "probabilities" not in served:
            raise UserError(
                f"the network is not a classifier; it returns {', '.join(served)}: call `serve`"
            )
        return served["probabilities"]

    def describe(self, served: Mapping[str, np.ndarray], top: int) -> tuple[list[str], dict]:
        """What `jaxconv predict` reports about one example, see `Task.describe`.

        Without the code of a custom task, it reports the arrays as they are.
        """
        return self.task.describe(served, self.description, top)

    @functools.cached_property
    def task(self) -> Task:
        """The task that the network was trained for; a plain one for a custom task."""
        config = default_config()
        config.task.name = self.description.get("task") or config.task.name
        data = {**self.description, "image_shape": list(self.input_shape)}
        return (open_task if config.task.name in TASKS else Task)(config, data)


def element_shape(config: Any, data: dict[str, Any]) -> tuple[int, ...]:
    """The shape of one element in a run's evaluation: (H, W, C) for images, (L,) for texts.

    Args:
      config: of the run.
      data: from `saved_data`.
    """
    shape = tuple(data["image_shape"])
    if data["kind"] == "text":
        return shape[:-1]  # the codes
    if data["kind"] == "image" and config.data.eval_image_size:
        return (config.data.eval_image_size,) * 2 + shape[-1:]
    return shape


def load_run(
    workdir: str | os.PathLike[str], checkpoint: str = "latest", overrides: Overrides = ()
) -> Predictor:
    """Load the network of a run.

    Args:
      workdir: of the run; an ensemble predicts the average of its members.
      checkpoint: `latest`, `best`, or a step.
      overrides: `KEY=VALUE` each or values by key, on how files are read, see train/other_data.py.

    Raises:
      UserError: the run or the checkpoint does not exist.
    """
    folder = expand(workdir)
    config, data = opened_config(folder, overrides), saved_data(folder)
    written = saved_config(folder)
    state, step = restore_run(folder, checkpoint, config=config)
    task, preprocess = open_task(config, data), make_preprocessing(config, data)
    model, kind, shape = task.model(), data["kind"], element_shape(config, data)

    def outputs_of(variables: Any, images: jax.Array) -> Any:
        return model.apply(variables, images, train=False)

    def apply(variables: Any, elements: jax.Array) -> dict[str, jax.Array]:
        images = preprocess({"image": elements})["image"]
        if members_of(config) is None:
            return task.serve(outputs_of(variables, images))
        of_members = over_members(outputs_of, form_of_run(config, folder), (0, None))
        return task.serve(task.combine(of_members(variables, images)))

    compiled = jax.jit(apply)
    description = {
        "format": _FORMAT,
        "task": written.task.name,
        "model": written.model.name,
        "class_names": data["class_names"],
        "kind": kind,
        "input_shape": list(shape),
        "dtype": "float32" if kind == "signal" else "uint16" if "words" in data else "uint8",
        "reading": reading_of(config.data, kind, shape, data),
        "step": step,
        "versions": {"jaxconv": __version__, "jax": jax.__version__},
        "config": written.to_dict(),
    }
    step = _step_of_pixels(task, model, shape) if kind == "image" else 0
    return Predictor(description, lambda elements: compiled(state.variables, elements), step)


def _step_of_pixels(task: Task, model: nn.Module, shape: tuple[int, ...]) -> int:
    """`Predictor.step` of a network for images of a shape (H, W, C)."""
    if not task.of_pixels:
        return 0
    init = functools.partial(model.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), images_of(shape))
    step, apply = (
        total_stride(model, variables, shape),
        functools.partial(model.apply, train=False),
    )
    height, width, channels = shape
    wider = images_of((height, width + step, channels))
    try:
        found = jax.eval_shape(apply, variables, wider)
    except (ValueError, TypeError, ArithmeticError, flax.errors.FlaxError):
        return 0  # such as a network with fully connected layers
    return step if found.shape[:-1] == wider.shape[:-1] else 0


def export_workdir(
    workdir: str, out: str, checkpoint: str = "latest", platforms: Sequence[str] = PLATFORMS
) -> dict[str, Any]:
    """Write the network of a run as one program; returns the contents of model.json.

    Args:
      workdir: of the run.
      out: a new or empty folder; it is written completely or not at all.
      checkpoint: `latest`, `best`, or a step.
      platforms: to lower for: cpu, cuda, tpu, rocm. None of them needs to be present.

    Raises:
      UserError: the run, the checkpoint or a platform does not exist, a layer cannot be exported,
        the program is too large, or the folder cannot be written.
    """
    for platform in platforms:
        if platform not in _ALL_PLATFORMS:
            choices = f"{nearest(platform, _ALL_PLATFORMS)}; choose {', '.join(_ALL_PLATFORMS)}"
            raise UserError(
                f"--platforms={','.join(platforms)}: unknown platform {platform!r}{choices}"
            )
    platforms = tuple(dict.fromkeys(platforms))
    check_new(out)
    predictor = load_run(workdir, checkpoint)
    program = lower(predictor.program, predictor.input_shape, predictor.dtype, platforms)
    size = len(program.mlir_module_serialized)
    if size > _MOST_BYTES:
        raise UserError(
            f"--workdir={workdir}: the program has {size:,} bytes, but the format holds at "
            f"most {_MOST_BYTES:,}; train a smaller network"
        )
    content = bytes(program.serialize())
    description = predictor.description | {
        "platforms": list(platforms),
        "program": {"bytes": len(content), "crc32": zlib.crc32(content)},
    }
    with new_folder(out) as folder:
        (folder / "program.bin").write_bytes(content)
        write_json(folder / "model.json", description)
    return description


def lower(
    program: Callable[[jax.Array], Any],
    shape: Sequence[int],
    dtype: str,
    platforms: Sequence[str] = PLATFORMS,
) -> jax.export.Exported:
    """Lower a function of elements [b, *shape] for any b and for several platforms at once.

    The program keeps the CPU's forms of convolution (layers/forms.py): the form is chosen when it
    is compiled.

    Raises:
      UserError: a layer computes with the batch size in Python; the message names it.
    """
    (b,) = jax.export.symbolic_shape("b")
    elements = jax.ShapeDtypeStruct((b, *shape), dtype)
    with nn.intercept_methods(_name_the_layer):
        return jax.export.export(jax.jit(program), platforms=platforms)(elements)


def _name_the_layer(call: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except (UserError, Complete):  # a backbone ends with the last map that is asked for
        raise
    except Exception as error:  # a layer may raise anything for a symbolic size
        layer = "/".join(context.module.path) or type(context.module).__name__
        raise UserError(
            f"{layer}: cannot be exported for an arbitrary batch size ({in_words(error)}); "
            "use x.shape[0] only in JAX operations, such as x.reshape(x.shape[0], -1)",
            exit_code=1,
        ) from error


def load_exported(path: str) -> Predictor:
    """Load the network in a folder of `export_workdir`; the code of its model is not needed.

    Raises:
      UserError: the folder holds no exported network, or one that is damaged, of a later version or
        for other platforms.
    """
    folder = expand(path, "--exported")
    if not (folder / "model.json").is_file():
        raise UserError(
            f"{folder}: holds no exported network (model.json is missing); `jaxconv export` "
            "creates such a folder",
            exit_code=1,
        )
    try:
        description, program = _read(folder)
        _check_platform(folder, program.platforms)
        call = jax.jit(program.call, compiler_options=compiler_options())
        # A program of a later version may deserialize and fail only when it is lowered.
        call.lower(jax.ShapeDtypeStruct((1, *description["input_shape"]), description["dtype"]))
    except UserError:
        raise
    except Exception as error:  # damaged files can raise anything
        raise UserError(
            f"{folder}: the exported network cannot be read ({in_words(error)}); export it again, "
            "or install the versions in its model.json",
            exit_code=1,
        ) from error
    return Predictor(description, call)


def _check_platform(folder: Path, platforms: Sequence[str]) -> None:
    here = jax.default_backend()
    if not {"gpu": {"cuda", "rocm"}}.get(here, {here}) & set(platforms):
        raise UserError(
            f"{folder}: was exported for {', '.join(platforms)}, but this is {here}; export it "
            "again with --platforms, "
            "or choose another platform with the environment variable JAX_PLATFORMS",
            exit_code=1,
        )


def _read(folder: Path) -> tuple[dict[str, Any], jax.export.Exported]:
    description = json.loads((folder / "model.json").read_text())
    if description["format"] > _FORMAT:
        raise ValueError(
            f"it has format {description['format']}, but this version reads only up to {_FORMAT}: "
            "update jaxconv"
        )
    missing = _KEYS - description.keys()
    if missing:
        raise ValueError(f"model.json lacks {', '.join(sorted(missing))}")
    content = (folder / "program.bin").read_bytes()
    if zlib.crc32(content) != description["program"]["crc32"]:
        raise ValueError("program.bin is damaged: its checksum differs")
    return description, jax.export.deserialize(bytearray(content))
