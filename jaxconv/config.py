"""The default config: every key, with a comment. An experiment overrides a few of them.

    from jaxconv.config import default_config

    def get_config():
        config = default_config()
        config.data.source = "xo"
        config.epochs = 5.0
        return config

No default is None and nothing is a list, so that each key can be set from the command line:
--config.optimizer.learning_rate=0.05, --config.data.mean=0.49,0.48,0.45. A value of the wrong type
is an error, and so is an unknown key; the message names the nearest one.
"""

import ast
import os
import re
import traceback
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from jaxconv import packaged
from jaxconv.errors import UserError, nearest, short
from jaxconv.user_files import as_path, running
from jaxconv.values import AnyConfig, Config, flatten, with_plain_values


def default_config() -> Config:
    """Every key with its default, locked.

    An unknown key raises AttributeError, a value of the wrong type TypeError.
    """
    config = Config()
    config.seed = 0  # seeds every random draw of the run
    config.batch_size = 128  # images per step, over all devices
    config.epochs = 0.0  # training length in passes over the training split, or
    config.steps = 0  # in steps; set exactly one of the two
    # how a step is distributed over the devices: jit, pmap or fsdp, see train/parallel.py
    config.parallel = "jit"
    # gradient accumulation: each device processes its share of a batch in this many parts, one
    # after another, to save memory
    config.accumulate = 1
    # training steps per call of the compiled program; more than 1 helps small networks on resident
    # data
    config.steps_per_call = 1
    # FIRST:LAST, such as 10:20: write a trace of these steps to the workdir, for TensorBoard or
    # xprof
    config.profile = ""
    # on a GPU: use only bit-for-bit reproducible kernels, at some cost in speed
    config.deterministic = False
    # folder for compiled programs; auto: the user's cache folder; off: no cache
    config.compilation_cache = "auto"

    config.task = task = Config()  # what the network learns, see jaxconv/tasks
    task.name = "classification"  # one of jaxconv.tasks.TASKS, or your own, see own.py
    task.kwargs = Config()  # the task's own settings

    config.model = model = Config()
    # one of jaxconv.list_models(), text: followed by the notation, or your own, see own.py
    model.name = "chain"
    model.kwargs = Config()  # the network's own arguments, such as filters=(16, 32)
    # start from weights: a name of `jaxconv weights` such as tv2_in1k, True for the usual ones,
    # hf:OWNER/REPO@REVISION, a file, a folder of `jaxconv convert`, or the workdir of another run.
    # What they want of images fills data.mean, std, image_size, eval_image_size and crop_ratio, of
    # detectors canvas and sides, where these have their defaults, see weights/preprocessing.py
    model.init_from = ""
    # compute type: float32, bfloat16 or float16; parameters and losses are float32
    model.dtype = "float32"
    # parts of a batch that BatchNorm normalises separately; as many as devices: one per device
    model.norm_groups = 1
    # recompute the activations inside the network's modules in the backward pass: less memory on
    # GPU and TPU
    model.remat = False

    config.data = data = Config()
    # xo, xo_scenes, xo_boxes, tones, sentences, solids, xo_clips, folder:PATH, masks:PATH,
    # coco:PATH, voc:PATH, csv:PATH, nifti:PATH, arrays:PATH, text:PATH or tfds:NAME, see
    # data/sources.py
    data.source = "xo"
    # for cross-validation with any source: SPLIT[!fold], all of a split but one fold, and
    # SPLIT[fold], that fold, see data/folds.py
    data.train_split = "train"
    data.eval_split = "test"
    data.folds = 10  # equal parts that such a split is cut into at random
    data.fold = 0  # which of them, from 0
    data.fold_seed = 0  # of the cut
    # per channel, on a scale from 0 to 1 for uint8 data; a single number applies to all channels
    data.mean = (0.5,)
    data.std = (0.5,)
    # pixels; the shorter side is resized to this, the center is cropped; 0: the files' own size
    data.image_size = 0
    data.eval_image_size = 0  # the same for evaluation, if different; 0: data.image_size
    # instead of these two, height and width of a canvas, such as 800,1344: an image keeps its
    # shape, is resized until it fits, and is padded at the bottom and the right, see data/canvas.py
    data.canvas = ()
    # the most pixels of an image's shorter and longer side on the canvas, such as torchvision's
    # 800,1333 on 1344,1344; empty: as many as fit
    data.sides = ()
    # of clips in folder:PATH: each folder of images is one clip, of which so many frames are read
    # [T, H, W, C], see data/folder.py; 0: each file is an example
    data.frames = 0
    # share of the shorter side that the center crop covers in evaluation: 0.875 for the papers' 224
    # of 256
    data.crop_ratio = 1.0
    # of image files: simplejpeg, pillow, or auto: simplejpeg if it is installed
    data.decoder = "auto"
    # how image files are resized: bilinear, or bicubic, as many published weights want it
    data.interpolation = "bilinear"
    # a colour that transparent images are laid on, such as white or #808080; empty: transparency is
    # dropped and the stored colours are used, as in timm, torchvision and Keras
    data.background = ""
    # bytes; a larger set is streamed instead of being held in device memory
    data.resident_limit = 2_000_000_000
    data.threads = 0  # that read and decode streamed data; 0: twice the number of cores
    data.prefetch = 2  # batches sent to the devices ahead of the step that needs them
    # share of a streamed set's examples that may be unreadable; each is replaced by the next one
    data.damaged_share = 0.001
    # skip unreadable files of a resident set instead of stopping; for streamed sets see
    # damaged_share
    data.skip_unreadable = False
    # what to do with faulty annotations: mend (clip or leave out, and count), keep (boxes as they
    # are), or refuse (an error names the first), see data/objects.py
    data.annotations = "mend"
    data.max_boxes = 100  # of an image; the smallest beyond it are left out
    # folder with ILSVRC's XML files, whose boxes are joined to the images of folder:PATH or
    # tfds:imagenet2012 by their names, see data/joined.py
    data.boxes = ""
    data.coco = coco = Config()  # settings of coco:PATH, see data/coco.py
    # below PATH, such as annotations/{split}.json; empty: the first that is there of the usual ones
    coco.file = ""
    coco.images = ""  # the images' folder, such as images/{split}; empty the same
    data.csv = table = Config()  # settings of csv:PATH, see data/tables.py
    table.images = ""  # the images' folder, beside the table, such as photos; empty: looked for
    table.relative = False  # numbers of boxes are shares of the image's sides instead of pixels
    data.nifti = nifti = Config()  # settings of nifti:PATH, see data/nifti.py
    # voxels, such as 40,56,40: volumes are centred in it; empty: the largest of each axis
    nifti.size = ()
    nifti.test_fraction = 0.2  # share held out as the split test, if the set is not split
    nifti.seed = 0  # of that split
    data.xo = xo = Config()  # settings of the source xo, see data/xo.py
    xo.size = 32  # pixels
    xo.channels = 1  # all identical
    xo.translation = 0.15  # largest shift, as a share of the width
    xo.scaling = 0.4  # largest stretch or shrinkage, as a share
    xo.rotation = 45.0  # largest rotation, degrees
    xo.weight = 0.5  # largest change of the stroke's thickness, as a share
    xo.noise = 0.5  # standard deviation, on the scale from -1 to 1
    xo.seed = 0
    xo.train_examples = 10_000
    xo.test_examples = 2_000
    data.scenes = scenes = Config()  # settings of xo_scenes and xo_boxes, see data/scenes.py
    scenes.size = 64  # pixels
    scenes.channels = 1  # all identical
    scenes.letters = (2, 5)  # fewest and most of xo_scenes
    scenes.noise = 0.2  # standard deviation, on the scale from -1 to 1
    scenes.seed = 0
    scenes.train_examples = 2_000
    scenes.test_examples = 500
    data.toy = toy = Config()  # settings of tones, sentences, solids and xo_clips, see data/toys.py
    toy.size = 16  # of solids and xo_clips, pixels
    toy.seed = 0
    toy.train_examples = 3_000
    toy.test_examples = 600
    data.audio = audio = Config()  # settings of all sounds
    audio.form = "log_mel"  # a spectrogram, or waveform
    audio.rate = 16_000  # samples per second
    # of each sound; longer ones are cropped to the middle, shorter ones padded with silence
    audio.seconds = 1.0
    audio.mels = 64  # mel filters of the spectrogram
    data.text = text = Config()  # settings of all texts
    text.length = 256  # codes per text
    # one code for each word instead, for a network that begins with embed: the most frequent words
    # of the training split, at most so many; 0: bytes or characters
    text.words = 0
    text.alphabet = ""  # characters, one code each; empty: the 256 bytes of UTF-8
    # whether the first line of a .tsv names the columns: yes, no, or auto for known names such as
    # label
    text.header = "auto"
    # a class ends at its first colon, such as DESC of TREC's DESC:manner
    text.coarse = False
    data.arrays = arrays = Config()  # settings of arrays:PATH
    # which axis is what, see data/layout.py: NHWC, NCHW, NHW ...; empty: what the shape makes clear
    arrays.layout = ""
    # value of white, which all numbers are divided by, such as 255 for floating-point numbers up to
    # it; 0: 255 for uint8, 1 for floating-point numbers
    arrays.scale = 0.0
    arrays.first_label = 0  # the label of the first class
    data.tfds = tfds = Config()  # settings of tfds:NAME
    # where the sets are stored; empty: TFDS's own folder, $TFDS_DATA_DIR or ~/tensorflow_datasets
    tfds.data_dir = ""
    tfds.input = ""  # the feature to learn from; empty: TFDS's own choice
    tfds.label = ""
    data.folder = folder = Config()  # settings of an unsplit folder:PATH
    folder.test_fraction = 0.1  # share of each class held out as the split test
    folder.seed = 0  # of that random split
    # instead, which files of folder:DIR/{class}_{take}.wav are the split test: take=0-4, take=0,1
    folder.test = ""

    # augmentation while training, applied in this order; each is off at 0, False or (). Volumes
    # have pad_crop and flip, and your own
    config.augment = augment = Config()
    augment.random_resized_crop = crop = Config()
    # smallest and largest share of the area that a random crop covers, such as 0.08,1; the crop is
    # resized to the image's size
    crop.scale = ()
    crop.ratio = (3 / 4, 4 / 3)  # smallest and largest width over height of the crop
    # smallest and largest size of the shorter side before a random crop of data.image_size, such as
    # 256,512
    augment.scale_jitter = ()
    # smallest and largest factor of the size at which an image fits, such as 0.1,2; then it is
    # cropped at random, or padded (large scale jitter, Ghiasi et al. 2021, arXiv:2012.07177)
    augment.large_scale_jitter = ()
    # which objects a crop leaves: visible (all of which it shows something) or centre (those whose
    # centre it shows, as SSD's)
    augment.kept_objects = "visible"
    # pixels added on each side before a random crop back to the size
    augment.pad_crop = 0
    augment.padding = "black"  # those pixels: black, or reflect, the image mirrored at its border
    augment.flip = False  # mirror images left to right with probability 1/2
    # instead, mirror half of the images in the first epoch, and from then on each image in every
    # second epoch (Jordan 2024, arXiv:2404.00498, section 3.6)
    augment.alternating_flip = False
    # probability that an example becomes a mosaic of four of the batch, for detection
    # (Bochkovskiy et al. 2020, arXiv:2004.10934), see data/mosaic.py
    augment.mosaic = 0.0
    augment.colour_jitter = jitter = Config()  # each of random strength, up to this
    jitter.brightness = 0.0  # factor from 1 - x to 1 + x
    jitter.contrast = 0.0  # the same
    jitter.saturation = 0.0  # the same
    jitter.hue = 0.0  # rotation of the color circle, from -x to x; 0.5 is half a turn
    jitter.probability = 1.0  # of changing an image (0.8 in SimCLR)
    augment.grey = 0.0  # probability of removing the colors of an image (0.2 in SimCLR)
    augment.blur = blur = Config()  # see data/contrastive.py
    blur.probability = 0.0  # of blurring an image (0.5 in SimCLR)
    blur.sigma = (0.1, 2.0)  # smallest and largest standard deviation of the Gaussian, pixels
    augment.solarise = solarise = Config()
    solarise.probability = 0.0  # of inverting the light values of an image (0.2 in BYOL)
    solarise.threshold = 0.5  # values of at least this share of white are light
    augment.randaugment = rand = Config()  # see data/randaugment.py
    rand.layers = 0  # operations per image, the paper's N
    # their strength, 0 to 1: the paper's M over the number of levels (torchvision's 9 of 30, timm's
    # m7 of 10)
    rand.level = 0.3
    rand.deviation = (
        0.0  # standard deviation of the level of each operation (timm's mstd0.5 is 0.05)
    )
    rand.probability = 1.0  # that an operation is applied (timm's is 0.5)
    rand.space = "torchvision"  # which operations, and how strong: torchvision, wide, timm
    augment.trivial = False  # TrivialAugment: one operation per image, of random strength
    augment.interpolation = "nearest"  # of these two: nearest or bilinear
    augment.pca_colour = 0.0  # standard deviation of AlexNet's color shift; 0.1 in the paper
    augment.own = ""  # your own augmentation, see own.py
    augment.erasing = erasing = Config()
    erasing.probability = 0.0  # that a box of an image is erased
    erasing.area = (0.02, 1 / 3)  # smallest and largest share of the image's area
    erasing.ratio = (0.3, 3.3)  # smallest and largest width over height
    erasing.noise = False  # fill the box with normal noise instead of the mean
    # alpha of the Beta distribution of the mixing weights of two images; 0.2 in the paper
    augment.mixup = 0.0
    # the same for pasting a box of one into the other; 1 in the paper. If both are on, each batch
    # randomly uses one of them
    augment.cutmix = 0.0
    # copies of each example in a batch, each augmented separately; an epoch then covers only a part
    # of the examples
    augment.repeats = 1

    config.loss = loss = Config()
    # softmax (cross entropy over all classes), binary (cross entropy of each class separately), or
    # your own, see own.py
    loss.name = "softmax"
    # binary: classes with more than this share of the target count as fully present; 0: use the
    # shares themselves
    loss.threshold = 0.0
    loss.label_smoothing = 0.0  # share of the target spread evenly over all classes
    # weights of the classes in the training loss: one number per class (1,2.5), by name
    # (cat:2,dog:0.5; others 1), or balanced: examples / (classes x examples of the class). Each
    # example's loss is multiplied by its class's weight, then averaged over all examples
    loss.class_weights = ""

    # learn from a trained network too, see train/distill.py
    config.distill = distill = Config()
    # the workdir of a run, or weights as model.init_from takes them; empty: no teacher
    distill.teacher = ""
    # soft (its probabilities at the temperature) or hard (its decision)
    distill.kind = "soft"
    distill.temperature = 4.0
    distill.alpha = 0.5  # share of the loss that is the teacher's; the labels' is the rest
    # feature maps that should attend to the same places: pairs STUDENT:TEACHER, separated by spaces
    distill.features = ""
    distill.feature_weight = 1.0  # of each of these pairs

    config.optimizer = optimizer = Config()
    # sgd, rmsprop, adamw, lamb, lars; or optax.NAME or a custom one, see train/named.py
    optimizer.name = "sgd"
    # arguments of an optimizer by name; those of the built-in ones are the settings below
    optimizer.kwargs = Config()
    optimizer.learning_rate = 0.1
    optimizer.momentum = 0.9  # what adamw and lamb call beta1
    optimizer.nesterov = False
    # rmsprop, adamw, lamb: decay of the running mean of squared gradients; for rmsprop about 0.9
    optimizer.beta2 = 0.999
    # added to that mean (rmsprop) or to its root (adamw, lamb); rmsprop needs a larger value, 1e-3
    # to 1
    optimizer.epsilon = 1e-8
    # lars: size of a layer's update at learning rate 1, as a share of its weights' norm
    optimizer.trust_coefficient = 0.001
    # clip gradients to this global norm; 0: no clipping
    optimizer.clip_norm = 0.0
    # clip the gradient of each filter and neuron to this share of the norm of its weights (adaptive
    # gradient clipping, arXiv:2102.06171: 0.01 for large batches, 0.16 for 256); 0: no clipping
    optimizer.adaptive_clip = 0.0
    # parameters exempt from it, as a regular expression on their path; the paper's: the last layer
    optimizer.adaptive_clip_except = r"(^|/)fc/"
    optimizer.l2 = 0.0  # the papers' weight decay: added to the gradient, before momentum
    # decoupled: learning rate x this x weight is subtracted, separately from the gradient
    optimizer.weight_decay = 0.0
    # parameters exempt from both kinds of decay, as a regular expression on their path
    optimizer.undecayed = r"(^|/)(bias|scale)$"
    optimizer.groups = Config()  # parameter groups by name, each made by group() below
    optimizer.schedule = schedule = Config()
    # constant, step, cosine, plateau; or optax.NAME or a custom one, see train/named.py
    schedule.name = "constant"
    schedule.kwargs = Config()  # arguments of a schedule by name
    # linear warmup from 0 over this many steps, with any schedule
    schedule.warmup_steps = 0
    schedule.factor = 0.1  # step, plateau: multiplies the learning rate
    schedule.boundaries = ()  # step: the rate drops after these steps, such as 32000,48000
    # plateau: the metric that should improve, such as eval/loss; empty: the task's first figure
    schedule.metric = ""
    schedule.patience = 3  # plateau: evaluations without a new best before the rate drops

    config.ema = ema = Config()
    # evaluate an exponential moving average of the weights and BatchNorm statistics, with this
    # decay per step; 0: off
    ema.decay = 0.0

    # several networks in one program, see train/ensemble.py
    config.ensemble = ensemble = Config()
    ensemble.size = 1  # number of networks, with the seeds seed, seed + 1, ...
    # with different seeds: own (each network sees the examples in its own order), or same (all in
    # one order)
    ensemble.batches = "own"
    ensemble.by = "auto"  # vmap, map, unroll, or auto: the fastest here, measured once
    # instead, one network per value of a setting, all with the same seed, such as
    # learning_rate:0.01,0.03,0.1; see TRACED in checks.py for the settings
    ensemble.over = ""

    config.eval = eval_ = Config()
    # steps between evaluations; 0: once per epoch. The last step is always evaluated
    eval_.every = 0
    eval_.metrics = ""  # your own, separated by spaces, see own.py
    eval_.batch_size = 500  # images, over all devices

    config.log = log = Config()
    log.every = 50  # steps between lines of metrics.jsonl
    log.tensorboard = True  # write TensorBoard files too
    log.progress = True  # show a progress bar, or plain lines without a terminal
    log.report = True  # write report.html at the end, see report/write.py

    # end the training once a metric no longer improves; see train/callbacks.py
    config.early_stopping = early_stopping = Config()
    early_stopping.patience = (
        0  # stop after this many evaluations in a row without a new best; 0: off
    )
    early_stopping.metric = ""  # such as eval/loss; empty: the task's first figure
    early_stopping.min_delta = 0.0  # a new best must be better by more than this
    # callbacks, separated by spaces: FILE.py:NAME or package.module.NAME, see train/callbacks.py
    config.callbacks = ""

    config.checkpoint = checkpoint = Config()
    # steps between checkpoints; 0: once per epoch. The last step is always saved
    checkpoint.every = 0
    checkpoint.keep = 2  # how many of the latest to keep
    checkpoint.keep_best = 1  # how many of the best to keep as well
    checkpoint.metric = ""  # decides which is best; empty: the task's first figure
    config.lock()
    # These stay unlocked: an experiment names its groups, and every network and task has its own
    # arguments.
    config.model.kwargs.unlock()
    config.task.kwargs.unlock()
    config.optimizer.groups.unlock()
    config.optimizer.kwargs.unlock()
    config.optimizer.schedule.kwargs.unlock()
    return config


def group(
    pattern: str, learning_rate: float = 1.0, weight_decay: float = 1.0, frozen: bool = False
) -> Config:
    """A parameter group: the parameters whose path, such as `conv1_1/kernel`, matches a pattern.

    Args:
      pattern: regular expression, searched for in the path.
      learning_rate: multiplies the learning rate.
      weight_decay: multiplies both kinds of weight decay.
      frozen: leave the parameters as they are.
    """
    numbers = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    numbers = {
        name: float(value) if type(value) is int else value for name, value in numbers.items()
    }
    made = Config({"pattern": pattern, **numbers, "frozen": frozen})
    made.lock()
    return made


# The toy data of a task, by its name.
_TOYS = {
    "classification": "xo",
    "segmentation": "xo_scenes",
    "localization": "xo_boxes",
    "detection": "xo_scenes",
}


def small(config: AnyConfig, image_size: int = 32, channels: int = 3, **kwargs: Any) -> Config:
    """Shrink an experiment to run on a CPU in seconds.

    It trains a thinner network for four steps on a few X's and O's (a custom task keeps its toy
    data). What makes it that experiment stays: augmentation, loss, optimizer, the kind of schedule,
    averages.

    Args:
      config: the experiment's, changed in place and returned.
      image_size: of the X's and O's in pixels, the smallest that the network takes.
      channels: of the X's and O's.
      **kwargs: arguments of the network that make it thinner.
    """
    data, schedule = config.data, config.optimizer.schedule
    if config.augment.scale_jitter:
        config.augment.scale_jitter = tuple(
            side * image_size // data.image_size for side in config.augment.scale_jitter
        )
    if not data.source.startswith("xo_") and config.task.name in _TOYS:
        data.source, data.boxes = _TOYS[config.task.name], ""
        data.scenes.channels = channels
        data.nifti.size = ()
    data.train_split, data.eval_split, data.image_size = "train", "test", 0
    data.canvas, data.sides = (), ()
    data.toy.train_examples, data.toy.test_examples = 24, 12
    if data.source.startswith("xo_"):
        data.scenes.size = image_size
        data.scenes.train_examples, data.scenes.test_examples = 24, 12
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
    """Divide the filters and neurons of a network text: `conv3-64` by 16 is `conv3-4`."""
    counts = r"(?<=conv\d-)\d+|(?<=conv\d\d-)\d+|(?<=fc)\d+"
    return re.sub(counts, lambda count: str(max(2, int(count[0]) // times)), text)


def check_argument(argument: str, *known: str) -> None:
    """Raise UserError if an experiment does not have the argument of `FILE.py:ARGUMENT`."""
    if argument and argument not in known:
        raise UserError(
            f"unknown argument {argument!r}{nearest(argument, known)}; it must be one of "
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
    "early_stopping",
    "callbacks",
)


def load_config(spec: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Config:
    """The config of an experiment file, with overrides from the command line.

    Args:
      spec: path of a Python file with `get_config()`, or `FILE.py:ARGUMENT` for
        `get_config(ARGUMENT)`. The file may import its neighbours, see own.py. `jaxconv:NAME` is
        an experiment that comes with jaxconv, see packaged.py.
      overrides: `key.of.config=value` each. Another name of the network, optimizer or
        schedule discards the experiment's `kwargs` for it.

    Raises:
      UserError: the file is missing or fails, or an override does not fit.
    """
    config = _run_experiment(str(spec))
    change(config, overrides)
    return config


def change(config: AnyConfig, overrides: Iterable[str]) -> None:
    """Set `key.of.config=value` each, as `load_config` does; raises the same errors."""
    settings = [override.partition("=") for override in overrides]
    for key, equals, text in settings:
        if not equals:
            raise UserError(f"--config.{key}: give a value, --config.{key}=VALUE")
        section = {"model.name": config.model, "optimizer.name": config.optimizer}
        section["optimizer.schedule.name"] = config.optimizer.schedule
        if key in section and text != section[key].name:
            # The experiment's arguments are those of its own network, optimizer or schedule.
            section[key].kwargs = Config()
    for key, _, text in settings:
        set_key(config, key, text)


def split_spec(spec: str) -> tuple[str, str]:
    """The path and the argument of `FILE.py[:ARGUMENT]` or `jaxconv:NAME[:ARGUMENT]`.

    The last `.py:` ends the path.
    """
    if spec.startswith(packaged.PREFIX):
        name, _, argument = spec.removeprefix(packaged.PREFIX).partition(":")
        return str(packaged.find(name)), argument
    if as_path(spec).is_file():
        return spec, ""
    path, dot, argument = spec.rpartition(".py:")
    return (f"{path}.py", argument) if dot else (spec, "")


def _run_experiment(spec: str) -> Config:
    """The config that an experiment's `get_config` returns, with plain values."""
    path, argument = split_spec(spec)
    file = as_path(path).resolve()
    if not file.is_file():
        raise UserError(f"--config={spec}: file {path!r} not found")
    try:
        # `get_config` too may import neighbours.
        with running(file) as found:
            if "get_config" not in found:
                raise UserError("a config file must define get_config()")
            config = found["get_config"](*([argument] if argument else []))
    except UserError as error:
        raise UserError(f"--config={spec}: {error}") from error
    except Exception as error:  # the user's code may raise anything
        words = f"{type(error).__name__}: {short(error, 400)}"
        raise UserError(f"{path}: {_where(str(file), error)}{words}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{path}: get_config() returned {type(config).__name__}; it must return "
            "a modified default_config()"
        )
    return with_plain_values(config)


def set_key(config: AnyConfig, key: str, text: str) -> None:
    """Set one dotted key from its text, read as the type that the key has now.

    The sections called `kwargs` accept new keys.

    Raises:
      UserError: the key is unknown (the message names the nearest), or the text is not of its type.
    """
    *parents, last = key.split(".")
    place = config
    for parent in parents:
        if not isinstance(place, ConfigDict) or parent not in place:
            raise UserError(f"--config.{key}: the config has no such key{nearest_key(config, key)}")
        place = place[parent]
    if isinstance(place, ConfigDict) and parents[-1:] == ["kwargs"] and last not in place:
        place[last] = _literal(text)
        return
    if not isinstance(place, ConfigDict) or last not in place:
        raise UserError(f"--config.{key}: the config has no such key{nearest_key(config, key)}")
    old = place[last]
    if isinstance(old, ConfigDict):
        raise UserError(f"--config.{key}: is a group of keys ({', '.join(old)}); set one of them")
    value: Any = text if isinstance(old, str) else _literal(text)
    if isinstance(old, tuple) and not isinstance(value, tuple):
        value = (value,)
    if type(old) is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    check_type(f"--config.{key}", value, old)
    if isinstance(old, float) and isinstance(value, int):
        value = float(value)
    place[last] = value


# The types that a default may have, in words.
TYPES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple: "numbers separated by commas",
}


def check_type(key: str, value: Any, example: Any) -> None:
    """Raise UserError unless the value has the example's type; an int may stand for a float.

    The items of a tuple are numbers, or of the types of the example's items.
    """
    fits: bool = type(value) is type(example) or (type(example) is float and type(value) is int)
    if fits and isinstance(example, tuple) and isinstance(value, tuple):
        items = {type(item) for item in example} - {int, float} or {int, float}
        fits = all(type(item) in items for item in value)
    if not fits:
        shown = ",".join(map(str, example)) or "1,2" if isinstance(example, tuple) else example
        raise UserError(f"{key} is {value!r}; it must be {TYPES[type(example)]}, such as {shown}")


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys of two flattened configs whose difference makes them different runs; see `MAY_DIFFER`.

    A longer training is the same run as long as the schedule does not depend on the length.
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


def nearest_key(config: AnyConfig, key: str) -> str:
    """`, did you mean 'x'?` for the config's key that is closest, or nothing."""
    return nearest(key, flatten(config))


def _where(path: str, error: Exception) -> str:
    """`line 7: ` for the innermost line of the config file that the error passed through."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == path
    ]
    return f"line {lines[-1]}: " if lines else ""
