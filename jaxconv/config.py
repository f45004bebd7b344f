"""The default config: every key, each with a comment. An experiment changes a few of them; the rest
stay as they are here.

    from jaxconv.config import default_config

    def get_config():
        config = default_config()
        config.data.source = "xo"
        config.epochs = 5.0
        return config

No default is None and nothing is a list, so that each key can be set from the command line:
--config.optimizer.learning_rate=0.05, --config.data.mean=0.49,0.48,0.45. An unknown key or a value
of another type is an error that names the nearest key.
"""

import ast
import re
import runpy
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxconv.errors import UserError, nearest


def default_config() -> ConfigDict:
    """Every key with its default, locked: an unknown key raises AttributeError, a value of another
    type TypeError.
    """
    config = ConfigDict()
    config.seed = 0  # every random draw of the run derives from it
    config.batch_size = 128  # images a step, over all devices
    config.epochs = 0.0  # length of the training in passes over the training split, or
    config.steps = 0  # in steps; exactly one of the two is set
    # how a step is spread over the devices: jit, pmap or fsdp, see train/parallel.py
    config.parallel = "jit"
    # parts that each device works its share of a batch off in, one after another, for less memory
    config.accumulate = 1
    # steps that a device does at once before the host hears of them; for small networks on resident
    # data
    config.steps_per_call = 1
    # FIRST:LAST, such as 10:20: write a trace of these steps to the workdir, for TensorBoard or
    # xprof
    config.profile = ""
    # on a GPU: only kernels that give the same bits again, at some speed
    config.deterministic = False
    # folder that keeps compiled programs; auto: the user's cache folder; off: none
    config.compilation_cache = "auto"

    config.task = task = ConfigDict()  # what is learnt, see jaxconv/tasks
    task.name = "classification"  # one of jaxconv.tasks.TASKS, or one's own, see own.py
    task.kwargs = ConfigDict()  # the task's own settings

    config.model = model = ConfigDict()
    # one of jaxconv.list_models(), text: and a text in the notation, or one's own, see own.py
    model.name = "chain"
    model.kwargs = ConfigDict()  # the network's own arguments, such as filters=(16, 32)
    # start from the weights in this folder: of `jaxconv convert`, or the workdir of another run
    model.init_from = ""
    # compute type: float32, bfloat16 or float16; parameters and losses are float32
    model.dtype = "float32"
    # parts of a batch that BatchNorm normalises by themselves; as many as devices: by each device
    model.norm_groups = 1
    # compute what is inside of the network's modules again on the way back: less memory on GPU and
    # TPU
    model.remat = False

    config.data = data = ConfigDict()
    # xo, tones, sentences, solids, folder:PATH, arrays:PATH, text:PATH or tfds:NAME, see
    # data/sources.py
    data.source = "xo"
    data.train_split = "train"
    data.eval_split = "test"
    # of each channel, on a scale from 0 to 1 where it is uint8; one number serves all channels
    data.mean = (0.5,)
    data.std = (0.5,)
    # pixels; the shorter side is resized to it and the middle kept; 0: the files' own size
    data.image_size = 0
    data.eval_image_size = 0  # the same while evaluating, where it differs; 0: data.image_size
    # share of the shorter side that the middle is, while evaluating: 0.875 for the papers' 224 of
    # 256
    data.crop_ratio = 1.0
    # of image files: simplejpeg, pillow, or auto for simplejpeg where it is installed
    data.decoder = "auto"
    # bytes; a larger set is streamed instead of lying in the devices' memory
    data.resident_limit = 2_000_000_000
    data.threads = 0  # that read and decode what is streamed; 0: twice as many as there are cores
    data.prefetch = 2  # batches that are sent to the devices ahead of the step that needs them
    # share of a streamed set's examples that may be unreadable; they are replaced by the next
    data.damaged_share = 0.001
    # of a set in memory, leave unreadable files out instead of stopping; for streamed ones see
    # above
    data.skip_unreadable = False
    data.xo = xo = ConfigDict()  # settings of the source xo, see data/xo.py
    xo.size = 32  # pixels
    xo.channels = 1  # all alike
    xo.translation = 0.15  # largest shift, share of the width
    xo.scaling = 0.4  # largest stretch or shrinking, share
    xo.rotation = 45.0  # largest turn, degrees
    xo.weight = 0.5  # largest change of the stroke's thickness, share
    xo.noise = 0.5  # deviation, on the scale from -1 to 1
    xo.seed = 0
    xo.train_examples = 10_000
    xo.test_examples = 2_000
    data.toy = toy = ConfigDict()  # settings of tones, sentences and solids, see data/toys.py
    toy.size = 16  # of solids, pixels
    toy.seed = 0
    toy.train_examples = 3_000
    toy.test_examples = 600
    data.audio = audio = ConfigDict()  # settings of all sounds
    audio.form = "log_mel"  # a spectrogram, or waveform
    audio.rate = 16_000  # samples a second
    audio.seconds = 1.0  # of each sound; longer ones keep their middle, shorter ones get silence
    audio.mels = 64  # filters of the spectrogram
    data.text = text = ConfigDict()  # settings of all texts
    text.length = 256  # codes of each text
    text.alphabet = ""  # characters, one code each; empty: the 256 bytes of UTF-8
    # whether the first line of a .tsv names the columns: yes, no, or auto for known names such as
    # label
    text.header = "auto"
    data.arrays = arrays = ConfigDict()  # settings of arrays:PATH
    # which axis is what, see data/layout.py: NHWC, NCHW, NHW ...; empty: what the shape makes clear
    arrays.layout = ""
    # value of white, which all numbers are divided by, such as 255 for floating-point numbers up to
    # it; 0: 255 for uint8, 1 for floating-point numbers
    arrays.scale = 0.0
    arrays.first_label = 0  # the label of the first class
    data.tfds = tfds = ConfigDict()  # settings of tfds:NAME
    # where the sets lie; empty: TFDS's own folder, $TFDS_DATA_DIR or ~/tensorflow_datasets
    tfds.data_dir = ""
    tfds.input = ""  # the feature to learn from; empty: TFDS's own choice
    tfds.label = ""
    data.folder = folder = ConfigDict()  # settings of an unsplit folder:PATH
    folder.test_fraction = 0.1  # share of each class that is held out as the split test
    folder.seed = 0  # of that draw

    # while training, in this order; each is off at 0, False or ()
    config.augment = augment = ConfigDict()
    augment.random_resized_crop = crop = ConfigDict()
    # least and largest share of the area of a random crop, such as 0.08,1; it is resized to the
    # image's size
    crop.scale = ()
    crop.ratio = (3 / 4, 4 / 3)  # least and largest width over height of it
    # least and largest size of the shorter side before a random crop of data.image_size, such as
    # 256,512
    augment.scale_jitter = ()
    augment.pad_crop = 0  # pixels of black added on each side before a random crop back to the size
    augment.flip = False  # mirror every other image, left to right
    augment.colour_jitter = jitter = ConfigDict()  # each with a random strength up to this
    jitter.brightness = 0.0  # factor from 1 - x to 1 + x
    jitter.contrast = 0.0  # the same
    jitter.saturation = 0.0  # the same
    jitter.hue = 0.0  # turn of the circle of colours, from -x to x; 0.5 is half of it
    jitter.probability = 1.0  # of an image to be changed (SimCLR's is 0.8)
    augment.grey = 0.0  # probability of an image to lose its colours (SimCLR's is 0.2)
    augment.blur = blur = ConfigDict()  # see data/contrastive.py
    blur.probability = 0.0  # of an image to be blurred (SimCLR's is 0.5)
    blur.sigma = (0.1, 2.0)  # least and largest deviation of the Gaussian, pixels
    augment.solarise = solarise = ConfigDict()
    solarise.probability = 0.0  # of an image's light values to be inverted (BYOL's is 0.2)
    solarise.threshold = 0.5  # light is what is at least this share of white
    augment.randaugment = rand = ConfigDict()  # see data/randaugment.py
    rand.layers = 0  # operations an image, N of the paper
    # their strength, 0 to 1: M of the paper over its number of levels (torchvision's 9 of 30,
    # timm's m7 of 10)
    rand.level = 0.3
    rand.deviation = 0.0  # of the level, drawn for each operation (timm's mstd0.5 is 0.05)
    rand.probability = 1.0  # of each operation to be done (timm's is 0.5)
    rand.space = "torchvision"  # which operations, how strong: torchvision, wide, timm
    augment.trivial = False  # TrivialAugment: one operation an image, of any strength
    augment.interpolation = "nearest"  # nearest or bilinear, of these two
    augment.pca_colour = 0.0  # deviation of AlexNet's shift of the colours; 0.1 in the paper
    augment.own = ""  # an augmentation of one's own, see own.py
    augment.erasing = erasing = ConfigDict()
    erasing.probability = 0.0  # of an image to lose a box
    erasing.area = (0.02, 1 / 3)  # least and largest share of the box
    erasing.ratio = (0.3, 3.3)  # least and largest width over height
    erasing.noise = False  # fill it by normal noise instead of the mean
    # alpha of the Beta distribution of the shares of two images; 0.2 in the paper
    augment.mixup = 0.0
    # the same for a box of one in the other; 1 in the paper. With both, a coin for each batch
    augment.cutmix = 0.0
    # times that an example comes in a batch, each augmented by itself; an epoch then sees a part of
    # the examples
    augment.repeats = 1

    config.loss = loss = ConfigDict()
    # softmax or binary: cross entropy over all classes together or of each by itself; or one's own,
    # see own.py
    loss.name = "softmax"
    # binary: classes with more than this share of the target count as wholly there; 0: by their
    # share
    loss.threshold = 0.0
    loss.label_smoothing = 0.0  # share of the target spread over all classes

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "sgd"  # sgd, rmsprop, adamw, lamb, lars
    optimizer.learning_rate = 0.1
    optimizer.momentum = 0.9  # what adamw and lamb call beta1
    optimizer.nesterov = False
    # rmsprop, adamw, lamb: of the running mean of squared gradients; rmsprop wants about 0.9
    optimizer.beta2 = 0.999
    # rmsprop, adamw, lamb: added to it (rmsprop) or to its root, which rmsprop wants larger, 1e-3
    # to 1
    optimizer.epsilon = 1e-8
    # lars: share of its weights' norm that a layer moves at a learning rate of 1
    optimizer.trust_coefficient = 0.001
    # the largest norm of all gradients together; larger ones are scaled down to it; 0: any
    optimizer.clip_norm = 0.0
    optimizer.l2 = 0.0  # the papers' weight decay: added to the gradient, before momentum
    # decoupled: learning rate x this x weight is taken off apart from the gradient
    optimizer.weight_decay = 0.0
    # parameters (a regular expression on their path) that neither of the two decays
    optimizer.undecayed = r"(^|/)(bias|scale)$"
    optimizer.groups = ConfigDict()  # parameter groups by name, each a group() of this file
    optimizer.schedule = schedule = ConfigDict()
    schedule.name = "constant"  # constant, step, cosine, plateau
    # the rate climbs from 0 in a straight line over these first steps, whatever the schedule
    schedule.warmup_steps = 0
    schedule.factor = 0.1  # step, plateau: the rate is multiplied by it
    schedule.boundaries = ()  # step: after these steps, such as 32000,48000
    # plateau: what should improve, such as eval/loss; empty: the first figure of the task
    schedule.metric = ""
    schedule.patience = 3  # plateau: evaluations without a new best before the rate falls

    config.ema = ema = ConfigDict()
    # evaluate the running average of the weights and of BatchNorm's statistics, which keeps this
    # share a step; 0: none
    ema.decay = 0.0

    # several networks in one program, see train/ensemble.py
    config.ensemble = ensemble = ConfigDict()
    ensemble.size = 1  # networks, with the seeds seed, seed + 1, ...
    # of seeds, whether each sees the examples in an order of its own, or all in the same
    ensemble.batches = "own"
    ensemble.by = "auto"  # how: vmap, map, unroll, or auto for the fastest here, measured once
    # a sweep instead, each of the same seed: learning_rate:0.01,0.03,0.1; see TRACED in checks.py
    # for what else
    ensemble.over = ""

    config.eval = eval_ = ConfigDict()
    # steps between evaluations; 0: once an epoch. The last step is always evaluated
    eval_.every = 0
    eval_.metrics = ""  # of one's own, see own.py; with spaces between
    eval_.batch_size = 500  # images, over all devices

    config.log = log = ConfigDict()
    log.every = 50  # steps between lines of metrics.jsonl
    log.tensorboard = True  # write TensorBoard files too
    log.progress = True  # show a progress bar, or lines where there is no terminal
    log.report = True  # write report.html at the end, see report/write.py

    config.checkpoint = checkpoint = ConfigDict()
    # steps between checkpoints; 0: once an epoch. The last step is always kept
    checkpoint.every = 0
    checkpoint.keep = 2  # how many of the latest to keep
    checkpoint.keep_best = 1  # how many of the best to keep besides
    checkpoint.metric = ""  # best by this; empty: the first figure of the task
    config.lock()
    # These are open: an experiment names its groups, and the arguments of a network and of a task
    # are its own.
    config.model.kwargs.unlock()
    config.task.kwargs.unlock()
    config.optimizer.groups.unlock()
    return config


def group(
    pattern: str, learning_rate: float = 1.0, weight_decay: float = 1.0, frozen: bool = False
) -> ConfigDict:
    """A parameter group: the parameters whose path, such as `conv1_1/kernel`, the regular
    expression matches.

    Args:
      pattern: searched for in the path.
      learning_rate: multiplies the learning rate.
      weight_decay: multiplies both kinds of weight decay.
      frozen: leave the parameters as they are.
    """
    numbers = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    numbers = {
        name: float(value) if type(value) is int else value for name, value in numbers.items()
    }
    return ConfigDict({"pattern": pattern, **numbers, "frozen": frozen}).lock()


def small(config: ConfigDict, image_size: int = 32, channels: int = 3, **kwargs: Any) -> ConfigDict:
    """An experiment shrunk to run on a CPU in seconds: four steps on a few X's and O's (another
    task keeps its toy), by a thinner network.

    What makes it that experiment stays: augmentation, loss, optimizer, the kind of schedule,
    averages.

    Args:
      config: the experiment's, changed in place and returned.
      image_size: pixels of the X's and O's, the least that the network takes.
      channels: of them.
      **kwargs: the network's own arguments that make it thinner.
    """
    data, schedule = config.data, config.optimizer.schedule
    if config.augment.scale_jitter:
        config.augment.scale_jitter = tuple(
            side * image_size // data.image_size for side in config.augment.scale_jitter
        )
    if config.task.name == default_config().task.name:
        data.source = "xo"
    data.train_split, data.eval_split, data.image_size = "train", "test", 0
    data.toy.train_examples, data.toy.test_examples = 24, 12
    data.eval_image_size = 0
    data.xo.size, data.xo.channels, data.xo.train_examples, data.xo.test_examples = (
        image_size,
        channels,
        24,
        12,
    )
    config.model.kwargs.update(kwargs)
    config.batch_size, config.eval.batch_size = 4 * config.augment.repeats, 6
    config.epochs, config.steps = 0.0, 4
    schedule.warmup_steps = min(schedule.warmup_steps, 2)
    schedule.boundaries = tuple(range(3, 3 + len(schedule.boundaries)))
    config.eval.every, config.log.every, config.checkpoint.every = 2, 1, 4
    return config


def thinner(text: str, times: int) -> str:
    """A network in the notation with so many times fewer filters and neurons: `conv3-64` by 16 is
    `conv3-4`.
    """
    counts = r"(?<=conv\d-)\d+|(?<=conv\d\d-)\d+|(?<=fc)\d+"
    return re.sub(counts, lambda count: str(max(2, int(count[0]) // times)), text)


def check_argument(argument: str, *known: str) -> None:
    """Raise UserError, with the nearest, where an experiment is asked for by `FILE.py:ARGUMENT`
    with none of the arguments that it has.
    """
    if argument and argument not in known:
        raise UserError(
            f"there is no argument {argument!r}{nearest(argument, known)}; there are "
            f"{', '.join(known)}"
        )


# Keys that may differ when a run is resumed: they change how it is run, not what it computes.
MAY_DIFFER = (
    "parallel",
    "profile",
    "compilation_cache",
    "log",
    "checkpoint.keep",
    "checkpoint.keep_best",
    "data.threads",
    "data.prefetch",
)


def load_config(spec: str, overrides: Iterable[str] = ()) -> ConfigDict:
    """The config of an experiment file, with overrides from the command line.

    Args:
      spec: path of a Python file with `get_config()`, or `FILE.py:ARGUMENT` for
        `get_config(ARGUMENT)`.
      overrides: `key.of.config=value` each. Another `model.name` leaves the experiment's
        `model.kwargs` behind.

    Raises:
      UserError: there is no such file, it fails, or an override does not fit.
    """
    path, _, argument = spec.partition(":")
    if not Path(path).is_file():
        raise UserError(f"--config={spec}: there is no file {path!r}")
    try:
        config = runpy.run_path(path)["get_config"](*([argument] if argument else []))
    except KeyError as error:
        raise UserError(
            f"{path}: {_where(path, error)}KeyError: {error}; a config file defines get_config()"
        ) from error
    except UserError as error:
        raise UserError(f"--config={spec}: {error}") from error
    except Exception as error:  # a person's own file may raise anything
        raise UserError(
            f"{path}: {_where(path, error)}{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{path}: get_config() returned {type(config).__name__}; it must return "
            "default_config(), changed"
        )
    settings = [override.partition("=") for override in overrides]
    for key, equals, text in settings:
        if not equals:
            raise UserError(f"--config.{key}: give a value, --config.{key}=VALUE")
        if key == "model.name" and text != config.model.name:
            # The arguments that the experiment gives are those of its own network.
            config.model.kwargs = ConfigDict()
    for key, _, text in settings:
        set_key(config, key, text)
    return config


def set_key(config: ConfigDict, key: str, text: str) -> None:
    """Set one dotted key from its text, read as the type that the key has now.

    `model.kwargs` and `task.kwargs` are open: a key that is not there yet is added.

    Raises:
      UserError: no such key (with the nearest), or the text is not of the key's type.
    """
    *parents, last = key.split(".")
    place = config
    for parent in parents:
        if not isinstance(place, ConfigDict) or parent not in place:
            raise UserError(f"--config.{key}: the config has no such key{nearest_key(config, key)}")
        place = place[parent]
    if isinstance(place, ConfigDict) and parents[1:] == ["kwargs"] and last not in place:
        place[last] = _literal(text)
        return
    if not isinstance(place, ConfigDict) or last not in place:
        raise UserError(f"--config.{key}: the config has no such key{nearest_key(config, key)}")
    old = place[last]
    if isinstance(old, ConfigDict):
        raise UserError(f"--config.{key}: is a group of keys ({', '.join(old)}); set one of them")
    value = text if isinstance(old, str) else _literal(text)
    if isinstance(old, tuple) and not isinstance(value, tuple):
        value = (value,)
    if type(old) is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    check_type(f"--config.{key}", value, old)
    place[last] = float(value) if isinstance(old, float) else value


def check_type(key: str, value: Any, example: Any) -> None:
    """Raise UserError unless the value is of the example's type; a whole number will do for a
    number.
    """
    fits = type(value) is type(example) or (type(example) is float and type(value) is int)
    if not fits or (
        isinstance(value, tuple) and not all(type(item) in (int, float) for item in value)
    ):
        names = {
            bool: "True or False",
            int: "a whole number",
            float: "a number",
            str: "a text",
            tuple: "numbers with commas between",
        }
        shown = ",".join(map(str, example)) or "1,2" if isinstance(example, tuple) else example
        raise UserError(f"{key} is {value!r}; it must be {names[type(example)]}, such as {shown}")


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values; an empty group of keys counts for nothing."""
    flat = {}
    for key, value in config.items():
        flat |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, ConfigDict)
            else {prefix + key: value}
        )
    return flat


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys of two flattened configs whose difference makes them different runs; see `MAY_DIFFER`.

    A longer training is the same run as long as the schedule does not look at the length.
    """
    may = [*MAY_DIFFER]
    if new["optimizer.schedule.name"] != "cosine":
        may += ["epochs", "steps"]
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [key for key in differing if not any(key == m or key.startswith(m + ".") for m in may)]


def _literal(text: str) -> Any:
    """A Python literal, or the text itself. `8,16` is a tuple."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def nearest_key(config: ConfigDict, key: str) -> str:
    """`, did you mean 'x'?` for the config's key that is closest, or nothing."""
    return nearest(key, flatten(config))


def _where(path: str, error: Exception) -> str:
    """`line 7: ` for the innermost line of the person's file that the error passed through."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == path
    ]
    return f"line {lines[-1]}: " if lines else ""
