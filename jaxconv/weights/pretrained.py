"""Weights that others have trained, by the text that names them:

True                     the first of the network in the table, see published.py
tv2_in1k, resnet50.a1_in1k, resnet50    one of the table, of this network or of another
hf:OWNER/REPO[@REVISION][:FILE]         of the Hugging Face hub, such as timm's
FILE                     any that reader.py reads
DIR                      of `jaxconv convert` or `jaxconv export --format`, or the workdir of a run

A file or folder that is there comes before a name of the table.
"""

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxconv.errors import UserError, in_words
from jaxconv.files import at_home
from jaxconv.models import (
    abstract_variables,
    create_model,
    list_models,
    model_arguments,
    usual_task,
)
from jaxconv.train.initial import fit, read_folder
from jaxconv.train.workdir import read_json
from jaxconv.weights.fetch import Fetched, Hub, fetch, hub_file, hub_of, sha256_of
from jaxconv.weights.names import schemes_of
from jaxconv.weights.published import (
    Pin,
    Preprocessing,
    Published,
    hint,
    is_commercial,
    named,
    pin,
    pins,
)
from jaxconv.weights.published import published as rows
from jaxconv.weights.reader import read_state_dict
from jaxconv.weights.timm_names import of_timm
from jaxconv.weights.torchvision import agreement, load_torchvision

log = logging.getLogger(__name__)

# What `jaxconv export --format` writes beside the weights.
EXPORTED = "network.json"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz", ".onnx")


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a text names; nothing is read or fetched yet.

    Attributes:
      text: as given, for messages.
      networks: those that the arrays of a file may be of.
      row: of the table.
      hub: of a repository that is not in the table.
      path: of a file or folder.
    """

    text: str
    networks: tuple[str, ...]
    row: Published | None = None
    hub: Hub | None = None
    path: Path | None = None

    @property
    def place(self) -> str:
        """What a pin is kept by; empty for a file or folder."""
        return self.row.place if self.row else self.text if self.hub else ""


def find_weights(text: str, networks: Sequence[str], option: str = "pretrained") -> Weights:
    """What a text names, see the module.

    Args:
      text: as given.
      networks: the network, and that of its backbone if it has one.
      option: for messages.

    Raises:
      UserError: it names nothing; the message has the nearest name.
    """
    network, networks = networks[0], tuple(networks)
    if not text:
        raise UserError(f"{option}= is empty; give True, a tag, a file or a folder")
    if text.startswith("hf:"):
        row = next((row for row in rows() if row.place == text), None)
        return Weights(text, networks, row, hub_of(text))
    path = at_home(text, option)
    if path.exists():
        return Weights(text, networks, path=path.absolute())
    if row := named(text, network):
        return Weights(text, (row.network,), row)
    raise UserError(
        f"{option}={text}: is no file or folder (of `jaxconv convert`, with weights.json, or of a "
        f"run), and no published weights have that name{hint(text, network)}",
        exit_code=1,
    )


def file_of(weights: Weights) -> Fetched:
    """The file of weights of the table or the hub, fetched and checked, by the user's pin too.

    Raises:
      UserError: see `fetch.fetch`.
    """
    kept, row, hub = pins().get(weights.place, Pin()), weights.row, weights.hub
    licence = row.licence if row else _hub_settings(hub).get("license", "") if hub else ""
    _say_licence(weights.place, str(licence or ""))
    revision = kept.revision or (row.revision if row else "")
    if not kept.sha256:
        return fetch(weights.place, revision, row.sha256 if row else "")
    try:
        return fetch(weights.place, revision, kept.sha256)
    except UserError as error:
        raise UserError(f"{error} (pinned)", error.exit_code) from error


@functools.cache
def _say_licence(place: str, licence: str) -> None:
    if not is_commercial(licence):
        log.warning("%s: licence %s, not for commercial use", place, licence)


def pin_weights(weights: Weights) -> Pin:
    """Keep the digest of the file that is there now, and its commit, which later uses must have.

    Raises:
      UserError: it is a file or folder, or cannot be fetched.
    """
    if not weights.place:
        raise UserError(f"--pin={weights.text}: is on this machine; only what is fetched is pinned")
    row = weights.row
    fetched = fetch(weights.place, row.revision if row else "", row.sha256 if row else "")
    kept = Pin(sha256_of(fetched.path), fetched.revision)
    pin(weights.place, kept)
    return kept


def read_weights(
    text: str, networks: Sequence[str], option: str = "--config.model.init_from"
) -> tuple[dict[str, Any], str]:
    """The variables that a text names, and what they are, for messages.

    Raises:
      UserError: they cannot be had or read.
    """
    weights = find_weights(text, networks, option)
    if (path := weights.path) is None:
        fetched = file_of(weights)
        at = f"@{fetched.revision}" if fetched.revision else ""
        name = weights.row.name if weights.row else weights.networks[0]
        variables = _of_file(fetched.path, weights, option)[0]
        return variables, f"weights of {name} ({weights.place}{at})"
    if path.is_dir() and not (inner := _file_in(path)):
        return read_folder(text, option)
    file = inner if path.is_dir() else path
    variables, network = _of_file(file, weights, option)
    return variables, f"weights of {network} in {file}"


def _file_in(folder: Path) -> Path | None:
    """The file of weights in a folder that holds neither a run nor converted weights."""
    if any((folder / name).is_file() for name in ("config.json", "weights.json")):
        return None
    files = [path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES]
    if len(files) > 1:
        raise UserError(f"{folder}: holds several files of weights; name one of them", exit_code=1)
    return files[0] if files else None


def _of_file(file: Path, weights: Weights, option: str) -> tuple[dict[str, Any], str]:
    """The variables in a file, and the network that they are of."""
    arrays, networks = read_state_dict(file), weights.networks
    network = networks[0]
    if len(networks) > 1:  # of the network, or of its backbone
        known = [name for name in networks if schemes_of(name)] or [network]
        network = max(known, key=lambda name: agreement(name, arrays))
    try:
        return load_torchvision(network, arrays), network
    except ValueError as error:
        where = "" if file == weights.path else f"{file.name}: "
        raise UserError(f"{option}={weights.text}: {where}{error}", exit_code=1) from error


def preprocessing_of(weights: Weights) -> Preprocessing | None:
    """What weights want of images; None where nobody says. Of the hub, its config.json is read.

    Raises:
      UserError: what says it is damaged.
    """
    if weights.row:
        return weights.row.preprocessing
    if weights.hub:
        return _of_timm(_hub_settings(weights.hub))
    for name in ("weights.json", EXPORTED):
        if weights.path and (file := weights.path / name).is_file():
            found = read_json(file, dict).get("preprocessing")
            return as_preprocessing(found, file) if found else None
    return None


def network_of(weights: Weights) -> str:
    """The network that weights are of: of the table, or as a repository of the hub says; otherwise
    the first of those that they may be of.
    """
    if weights.row:
        return weights.row.network
    if weights.hub:
        ours, _ = of_timm(str(_hub_settings(weights.hub).get("architecture", "")))
        if ours in list_models():
            return ours
    return weights.networks[0]


def arguments_of(weights: Weights, network: str) -> dict[str, Any]:
    """The arguments with which weights of this network were trained, where its own are others."""
    if weights.row:
        return dict(weights.row.arguments) if weights.row.network == network else {}
    if not weights.hub:
        return {}
    ours, arguments = of_timm(str(_hub_settings(weights.hub).get("architecture", "")))
    return arguments if ours == network else {}


def as_preprocessing(found: Mapping[str, Any], file: Path) -> Preprocessing:
    """What `dataclasses.asdict` made of it, from JSON; raises UserError if it is something else."""
    try:
        lists: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in found.items()
        }
        return Preprocessing(**lists)
    except (TypeError, AttributeError) as error:
        raise UserError(f"{file}: preprocessing is damaged ({in_words(error)})", 1) from error


@functools.cache
def _hub_settings(hub: Hub) -> dict[str, Any]:
    """`pretrained_cfg` and `architecture` of a repository's config.json, as timm writes it."""
    try:
        file = hub_file(hub, "config.json").path
    except UserError as error:
        log.warning("hf:%s: what its weights want of images is not known: %s", hub.repo, error)
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        known = {"architecture": content.get("architecture", "")}
        return {**known, **content.get("pretrained_cfg", {})}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({in_words(error)})", exit_code=1) from error


def _of_timm(settings: Mapping[str, Any]) -> Preprocessing | None:
    try:
        size: list[int] = [*(settings.get("input_size") or ())][-1:]
        tested: list[int] = [*(settings.get("test_input_size") or size)][-1:]
        found = Preprocessing(
            mean=tuple(map(float, settings.get("mean") or ())),
            std=tuple(map(float, settings.get("std") or ())),
            size=tuple(map(int, size)),
            test_size=int(tested[0]) if tested and tested != size else 0,
            crop=float(settings.get("test_crop_pct") or settings.get("crop_pct") or 0),
            interpolation=str(settings.get("interpolation") or ""),
        )
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"config.json of the hub: {in_words(error)}", exit_code=1) from error
    return found if found != Preprocessing() else None


def create_pretrained(
    name: str, pretrained: str | os.PathLike[str], num_classes: int | None, **settings: Any
) -> tuple[Any, dict[str, Any]]:
    """The network and its variables, float32 numpy arrays; see `create.create_model`."""
    usual = usual_task(name)[0]
    backbone = settings.get("backbone") or model_arguments(name).get("backbone")
    networks = (name, *([backbone] if backbone else []))
    weights = find_weights(os.fspath(pretrained), networks)
    settings = {**arguments_of(weights, name), **settings}
    variables, _ = read_weights(os.fspath(pretrained), networks, "pretrained")
    classes = classes_in(name, variables, settings) if num_classes is None else num_classes
    model = create_model(name, classes, **settings)
    shapes = abstract_variables(model, (1, *usual))
    if not classes:  # the last layer goes
        whole = create_model(name, 1, **settings)
        variables = _without(variables, abstract_variables(whole, (1, *usual)), shapes)
    try:
        fitted, said = fit(variables, shapes, classes)
    except ValueError as error:
        raise UserError(
            f"pretrained={pretrained}: the weights do not fit {name}: {error}", exit_code=1
        ) from error
    for line in said:
        log.info("%s", line)
    return model, _with_new_layers(model, fitted, (1, *usual))


def classes_in(name: str, variables: Any, settings: Mapping[str, Any]) -> int:
    """The number of classes of a network's variables; its usual one for those of a backbone.

    `settings` are the network's own arguments.
    """
    shape, usual = usual_task(name)
    trees = (abstract_variables(create_model(name, k, **settings), (1, *shape)) for k in (1, 2))
    # Flax types its keys as tuples, which they are without `sep`.
    one, two, flat = (
        cast(dict[str, Any], flatten_dict(tree, sep="/")) for tree in (*trees, variables)
    )
    for path, leaf in one.items():
        first, second = (leaf.shape[-1:], two[path].shape[-1:])
        if first != second and path in flat:
            return 1 + (flat[path].shape[-1] - first[0]) // (second[0] - first[0])
    return usual


def _without(variables: Any, whole: Any, part: Any) -> dict[str, Any]:
    """The variables but for those of a network that a part of it lacks."""
    left = flatten_dict(whole, sep="/").keys() - flatten_dict(part, sep="/").keys()
    flat: Any = flatten_dict(variables, sep="/")
    return unflatten_dict({path: x for path, x in flat.items() if path not in left}, sep="/")


def _with_new_layers(model: Any, fitted: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """The variables, with initial values for what is only a shape."""
    flat: Any = flatten_dict(fitted, sep="/")
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in flat.values()):
        init = jax.jit(functools.partial(model.init, train=False))
        fresh: Any = flatten_dict(init(jax.random.key(0), jnp.zeros(shape)), sep="/")
        flat = {
            path: fresh[path] if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
            for path, leaf in flat.items()
        }
    return unflatten_dict({path: np.asarray(leaf) for path, leaf in flat.items()}, sep="/")
