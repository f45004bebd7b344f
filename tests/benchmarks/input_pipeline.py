"""Images per second from files to batches, compared with other loaders, and the growth of memory.

    pip install tensorflow-cpu torch torchvision 'jaxconv[fast]'
    python tests/benchmarks/input_pipeline.py            # the loaders: some minutes
    python tests/benchmarks/input_pipeline.py memory     # 10,000 batches of 8 images

JPEG files of about 500x375 pixels are decoded, randomly cropped and resized to 224, flipped and
batched by 64, on all cores. jaxconv flips on the device, which is included in its time; the others
flip on the host. Then 32x32 images in memory are padded, randomly cropped, flipped and normalized
in batches of 128: jaxconv's resident loading against torch's DataLoader. Each loader runs in a
separate process; their repeats are interleaved.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import interleaved, machine, ratios
from PIL import Image

FILES, SIZE, BATCH, SECONDS, REPEATS = 512, 224, 64, 8.0, 5
SMALL, SMALL_BATCH = 20_000, 128
JPEG = ("jaxconv", "jaxconv_pillow", "tfdata", "dataloader", "grain_pillow")
RESIDENT = ("jaxconv_resident", "dataloader_resident")


def make_files(root):
    """JPEGs of smooth blobs and some noise, about 110 kB each, as in ImageNet."""
    for number in range(FILES):
        random = np.random.default_rng(number)
        height, width = (375, 500) if number % 4 else (500, 375)
        blobs = Image.fromarray(
            random.integers(0, 256, (height // 12, width // 12, 3), np.uint8)
        ).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.clip(
            np.asarray(blobs) + random.normal(0, 11, (height, width, 3)), 0, 255
        ).astype(np.uint8)
        folder = root / "train" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number:05}.jpg", quality=90)


def paths(root):
    return sorted((Path(root) / "train").rglob("*.jpg"))


def config_of(root, decoder="simplejpeg"):
    from jaxconv.config import default_config

    config = default_config()
    config.data.source, config.data.image_size, config.data.decoder = (
        f"folder:{root}",
        SIZE,
        decoder,
    )
    config.augment.random_resized_crop.scale = (0.08, 1.0)
    return config


def jaxconv_batches(root, decoder="simplejpeg"):
    """Streamed, sent to the device, and flipped there."""
    import jax

    from jaxconv.data.augment import flip
    from jaxconv.data.loading import Order, make_loader
    from jaxconv.data.sources import open_source
    from jaxconv.train.parallel import make_parallel

    config = config_of(root, decoder)
    loader = make_loader(
        open_source(config.data, "train", augment=config.augment),
        make_parallel("jit", jax.devices()[:1]),
        config.data,
    )
    flipped, key = jax.jit(flip), jax.random.key(0)
    for batch in loader.train_batches(Order((0,), BATCH), 0, 10**6):
        yield flipped(key, batch)["image"].block_until_ready()


def jaxconv_pillow_batches(root):
    return jaxconv_batches(root, "pillow")


def tfdata_batches(root):
    """`decode_and_crop_jpeg` with TensorFlow's random crop, as the reference ResNets for TPUs."""
    import tensorflow as tf

    def read(path):
        content = tf.io.read_file(path)
        shape = tf.image.extract_jpeg_shape(content)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros((1, 0, 4)),
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.resize(
            tf.image.decode_and_crop_jpeg(content, window, channels=3), (SIZE, SIZE)
        )
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8)

    data = (
        tf.data.Dataset.from_tensor_slices([str(path) for path in paths(root)])
        .shuffle(FILES)
        .repeat()
    )
    data = (
        data.map(read, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(BATCH, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )
    return data.as_numpy_iterator()


def torchvision():
    """torchvision, also with a build of torch that its compiled operators do not match."""
    import torch

    try:
        from torchvision import transforms
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        from torchvision import transforms
    return transforms


def endless(loader):
    while True:
        yield from loader


def dataloader_batches(root):
    """torchvision's reference recipe: Pillow, RandomResizedCrop, flip, one worker per core."""
    import torch

    transforms = torchvision()
    change = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )

    class Files(torch.utils.data.Dataset):
        files = paths(root)

        def __len__(self):
            return FILES

        def __getitem__(self, i):
            with Image.open(self.files[i]) as image:
                return change(image.convert("RGB"))

    workers = {"num_workers": os.cpu_count(), "persistent_workers": True, "prefetch_factor": 4}
    return endless(
        torch.utils.data.DataLoader(Files(), BATCH, shuffle=True, drop_last=True, **workers)
    )


def grain_pillow_batches(root):
    """Grain as in its tutorial, with Pillow and reader threads."""
    import grain

    from jaxconv.data.geometry import crop_box

    files = paths(root)

    def read(i, random):
        with Image.open(files[i]) as image:
            image = image.convert("RGB")
            top, left, height, width = crop_box(random, image.height, image.width)
            image = image.resize(
                (SIZE, SIZE), Image.Resampling.BILINEAR, (left, top, left + width, top + height)
            )
            pixels = np.asarray(image)
        return pixels[:, ::-1] if random.random() < 0.5 else pixels

    data = grain.MapDataset.range(FILES).seed(0).shuffle().repeat().random_map(read)
    return iter(
        data.to_iter_dataset(grain.ReadOptions(num_threads=16, prefetch_buffer_size=500)).batch(
            BATCH
        )
    )


def small_images():
    return np.random.default_rng(0).integers(0, 256, (SMALL, 32, 32, 3), np.uint8)


def jaxconv_resident_batches(root):
    import jax

    from jaxconv.config import default_config
    from jaxconv.data import from_arrays
    from jaxconv.data.augment import make_augment
    from jaxconv.data.loading import Order, make_loader, take
    from jaxconv.train.parallel import make_parallel

    config = default_config()
    config.augment.pad_crop, config.augment.flip = 4, True
    source = from_arrays(small_images(), np.zeros(SMALL, np.int32), ("a", "b"))
    loader, augment, key = (
        make_loader(source, make_parallel("jit", jax.devices()[:1]), config.data),
        make_augment(config, num_classes=2),
        jax.random.key(0),
    )
    step = jax.jit(lambda data, batch: augment(key, take(data, batch))["image"])
    for batch in loader.train_batches(Order((0,), SMALL_BATCH), 0, 10**6):
        yield step(loader.data, batch).block_until_ready()


def dataloader_resident_batches(root):
    import torch

    transforms = torchvision()
    change = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    images = [Image.fromarray(image) for image in small_images()]

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return SMALL

        def __getitem__(self, i):
            return change(images[i])

    workers = {"num_workers": os.cpu_count(), "persistent_workers": True}
    return endless(
        torch.utils.data.DataLoader(Images(), SMALL_BATCH, shuffle=True, drop_last=True, **workers)
    )


def cpu_seconds():
    """CPU time of this process and of the workers that it started."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            # fields[0] is the state, field 3 in proc(5); user and system time are 14 and 15.
            if int(stat.parent.name) == os.getpid() or int(fields[1]) == os.getpid():
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(name, root):
    """Images per second and per CPU second of one loader, after two seconds of warm-up."""
    batches, start, count, used = iter(globals()[f"{name}_batches"](root)), None, 0, 0.0
    began = time.perf_counter()
    for batch in batches:
        now = time.perf_counter()
        if start is None:
            start, used = (now, cpu_seconds()) if now - began > 2 else (None, 0.0)
            continue
        count += len(batch)
        if now - start > SECONDS:
            return count / (now - start), count / (cpu_seconds() - used)


def in_a_process(name, root):
    """`measure` in a separate process, so that loaders' threads do not interfere."""
    command = [sys.executable, __file__, "one", name, str(root)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    if process.returncode:
        raise SystemExit(f"{name}: {process.stderr}")
    return tuple(map(float, process.stdout.split()[-2:]))


def memory(root, batches=10_000, warm_up=500):
    """Growth of the resident set size over batches of 8, after a warm-up."""
    from jaxconv.data.loading import Reader
    from jaxconv.data.sources import open_source

    config = config_of(root)
    reader, sizes = Reader(open_source(config.data, "train", augment=config.augment)), []
    for number, _ in enumerate(reader.train_batches(0, 0, warm_up + batches, 8)):
        if number >= warm_up and (number - warm_up) % (batches // 20) == 0:
            sizes.append(
                int(Path("/proc/self/statm").read_text().split()[1])
                * resource.getpagesize()
                / 2**20
            )
    growth = sizes[-1] / sizes[0] - 1
    print(machine("grain", "simplejpeg", "opencv-python-headless"))
    print(
        f"resident set size after {warm_up} batches {sizes[0]:.1f} MiB, after {batches:,} more "
        f"{sizes[-1]:.1f} MiB: {100 * growth:+.2f} %"
    )
    print("every " + f"{batches // 20} batches: " + ", ".join(f"{size:.1f}" for size in sizes))
    print(json.dumps({"growth": growth}))


def main():
    if sys.argv[1:2] == ["one"]:
        print(*measure(*sys.argv[2:]), flush=True)
        os._exit(0)  # some loaders' threads never end
    with tempfile.TemporaryDirectory() as root:
        make_files(Path(root))
        if sys.argv[1:] == ["memory"]:
            memory(root)
            return
        sizes = [path.stat().st_size for path in paths(root)]
        results = interleaved(
            {name: lambda name=name: in_a_process(name, root) for name in (*JPEG, *RESIDENT)},
            REPEATS,
        )
    print(
        machine(
            "grain",
            "simplejpeg",
            "opencv-python-headless",
            "pillow",
            "tensorflow-cpu",
            "torch",
            "torchvision",
        )
    )
    print(
        f"{FILES} JPEG files of {np.mean(sizes) / 1000:.0f} kB, {REPEATS} interleaved repeats of "
        f"{SECONDS:.0f} s"
    )
    # On a shared machine, a loader's share of the cores depends on its number of threads, so the
    # rate per CPU second is given too.
    for number, what in enumerate(("images/s", "images/s of one core's time")):
        rates = {name: [pair[number] for pair in pairs] for name, pairs in results.items()}
        print(what)
        for name, values in rates.items():
            print(
                f"  {name:20} {np.median(values):10,.0f}  ({min(values):,.0f} to "
                f"{max(values):,.0f})"
            )
        for base in JPEG[1:]:
            print(f"  jaxconv / {base}: {ratios(rates, 'jaxconv', base)}")
        print(f"  jaxconv / dataloader, resident 32x32: {ratios(rates, *RESIDENT)}")
        print(json.dumps({name: float(np.median(values)) for name, values in rates.items()}))


if __name__ == "__main__":
    main()
