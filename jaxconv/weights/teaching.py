"""Weights that others have trained as the teacher of a distillation, see train/teacher.py."""

from collections.abc import Sequence

from jaxconv.train.teacher import TeacherWeights, read_converted
from jaxconv.weights.pretrained import (
    arguments_of,
    find_weights,
    network_of,
    preprocessing_of,
    read_weights,
)

_OPTION = "--config.distill.teacher"


def read_teaching(place: str, networks: Sequence[str]) -> TeacherWeights:
    """The weights that a text names, as for `config.model.init_from`.

    Args:
      place: the text. Names of the table, such as resnet50.a1_in1k, repositories of timm's
        (`hf:timm/resnet50.a1_in1k`) and folders of `jaxconv convert` say their network.
      networks: of the student, whose network files, and repositories that do not say it, are of.

    Raises:
      UserError: they cannot be had or read.
    """
    weights = find_weights(place, networks, _OPTION)
    if weights.path is not None and (weights.path / "weights.json").is_file():
        return read_converted(place)
    network = network_of(weights)
    own = networks if network == networks[0] else (network,)
    variables, what = read_weights(place, own, _OPTION)
    wants = preprocessing_of(weights)
    mean, std = (wants.mean, wants.std) if wants else ((), ())
    arguments = arguments_of(weights, network)
    return TeacherWeights(network, variables, what, mean, std, arguments)
