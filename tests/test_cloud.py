"""Data, weights and runs in buckets: against servers of S3's and GCS's protocols."""

import json
import logging
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxconv import cloud
from jaxconv.__main__ import main
from jaxconv.config import load_config
from jaxconv.data import tfds_sets
from jaxconv.data.prepare import prepare
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.files import check_file, expand, whole_file
from jaxconv.look.live import frames
from jaxconv.run import train
from jaxconv.train.parallel import fingerprint
from jaxconv.train.restore import restore_run
from tests.conftest import TINY, command_line, process_settings, write_images
from tests.reliability.test_kill import numbers
from tests.stores import BUCKET, KINDS, is_list, some_of, store

pytest.importorskip("s3fs")
pytest.importorskip("gcsfs")
pytestmark = pytest.mark.slow
SETTINGS = [flag.removeprefix("--config.") for flag in TINY if flag.startswith("--config.")]
SETTINGS += ["steps=24", "checkpoint.every=4", "eval.every=8", "log.progress=False"]
# What depends on the store; what does not is tested on s3.
ON_GS = {
    f"test_{name}"
    for name in ("folder_of_data", "one_file", "cut_connections", "wrong_bucket", "refused")
} | {"test_extra_is_missing"}
FLAGS = [f"--config.{setting}" for setting in SETTINGS]


@pytest.fixture(scope="module", params=KINDS)
def served(request):
    with store(request.param) as made, pytest.MonkeyPatch.context() as patch:
        for name, value in made.environment.items():
            patch.setenv(name, value)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        made.files().clear_instance_cache()
        yield made


@pytest.fixture
def bucket(served, tmp_path, monkeypatch, request):
    """A store with no fault, seen from a machine that has no copy."""
    if (
        served.kind == "gs"
        and request.node.originalname not in ON_GS
        and not request.config.getoption("--full")
    ):
        pytest.skip("as on s3; on gs only with --full, as its emulator is slow")
    served.fault = lambda method, path: ""
    served.asked.clear()
    for module in (cloud.index, cloud.mirror):
        monkeypatch.setattr(module, "PATIENCE", 2)
    other_machine(monkeypatch, tmp_path / "one")
    package = logging.getLogger("jaxconv")  # which `main` sends to this test's standard error
    monkeypatch.setattr(package, "handlers", [])
    monkeypatch.setattr(package, "propagate", True)
    monkeypatch.setattr(package, "level", logging.INFO)
    yield served
    served.fault = lambda method, path: ""


def other_machine(monkeypatch, cache):
    monkeypatch.setenv("JAXCONV_CLOUD", str(cache))
    cloud.copies._FETCHED.clear()


def config_of(**changes):
    return load_config("experiments/xo.py", [*SETTINGS, *(f"{k}={v}" for k, v in changes.items())])


def state_of(folder):
    return int(fingerprint(restore_run(expand(folder))[0]))


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """The same run in a folder of this machine."""
    folder = tmp_path_factory.mktemp("run")
    train(config_of(), folder)
    return folder


def names_in(bucket, path):
    return {name.split(f"{path}/")[1] for name in bucket.files().find(f"{BUCKET}/{path}")}


def steps_in(bucket, path):
    index = json.loads(bucket.files().cat_file(f"{BUCKET}/{path}/.index.json"))
    names = {name.split("/")[1] for name in index["files"] if name.startswith("checkpoints/")}
    return sorted(map(int, names))


def test_folder_of_data(bucket, tmp_path, monkeypatch):
    write_images(tmp_path / "images", count=3)
    bucket.files().put(f"{tmp_path}/images", f"{BUCKET}/data", recursive=True)
    source = f"folder:{bucket.address('data')}"
    data = config_of().data.copy_and_resolve_references()
    data.source, data.image_size = source, 8
    here = data.copy_and_resolve_references()
    here.source = f"folder:{tmp_path}/images"
    split = sorted(path.name for path in (tmp_path / "images").iterdir())[0]
    found, wanted = (open_source(settings, split) for settings in (data, here))
    assert len(found) == len(wanted) > 0 and found.checksum() == wanted.checksum()
    # Only what has changed is fetched again.
    names = bucket.files().find(f"{BUCKET}/data")
    bucket.files().pipe_file(names[0], b"changed")
    bucket.files().rm_file(names[1])
    bucket.asked.clear()
    place = cloud.place_of(bucket.address("data"))
    cloud.refresh(place)
    below = [name.removeprefix(f"{BUCKET}/data/") for name in names]
    assert (place / below[0]).read_bytes() == b"changed" and not (place / below[1]).exists()
    got = [path for method, path in bucket.asked if method == "GET" and not is_list(method, path)]
    assert not any(name in path for path in got for name in below[2:])


def test_set_of_tfds(bucket):
    """Only the set that is read is fetched; none is prepared there."""
    for name in ("mine", "other"):
        file = f"{BUCKET}/tfds/{name}/1.0.0/dataset_info.json"
        bucket.files().pipe_file(file, b"{}")
    with pytest.raises(UserError, match="tfds:mine: .* is damaged"):
        tfds_sets._open_builder("mine", bucket.address("tfds"))
    fetched = cloud.place_of(bucket.address("tfds"))
    assert (fetched / "mine/1.0.0/dataset_info.json").is_file() and not (fetched / "other").exists()
    with pytest.raises(UserError, match="is prepared on this machine; give a folder"):
        prepare("mnist", data_dir=bucket.address("tfds"))


def test_one_file(bucket, tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, image=np.zeros((2, 8, 8, 1), np.uint8))
    bucket.files().put_file(str(file), f"{BUCKET}/one/a.npz")
    assert expand(bucket.address("one/a.npz")).read_bytes() == file.read_bytes()
    out = check_file("out", bucket.address("new/b.csv"), (".csv",))
    with whole_file(out) as temporary:
        temporary.write_text("a,b")
    assert bucket.files().cat_file(f"{BUCKET}/new/b.csv") == b"a,b"
    assert cloud.with_addresses(f"see {out}") == f"see {bucket.address('new/b.csv')}"


def test_cut_connections(bucket, tmp_path):
    """Whatever is cut, lost or refused for a moment, what arrives is what was sent."""
    content = np.random.default_rng(0).bytes(200_000)
    bucket.fault = some_of("cut 503 lose", every=4)
    for number in range(4):
        file = expand(bucket.address("cut")) / f"{number}.bin"
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as temporary:
            temporary.write_bytes(content[number:])
    shutil.rmtree(cloud.cache_folder())
    cloud.copies._FETCHED.clear()
    folder = expand(bucket.address("cut"))
    assert [(folder / f"{n}.bin").read_bytes() == content[n:] for n in range(4)] == [True] * 4


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("{kind}://", "must be .*://BUCKET/PATH"),
        ("{kind}://bucket/../x", "must be .*://BUCKET/PATH"),
        ("{kind}://bucket/.x", "must be .*://BUCKET/PATH"),
        ("https://bucket/x", "gs://BUCKET/PATH or s3://BUCKET/PATH"),
    ],
)
def test_no_address(bucket, path, words):
    with pytest.raises(UserError, match=words):
        expand(path.format(kind=bucket.kind))


def test_wrong_bucket(bucket, capsys):
    assert main(["evaluate", f"--workdir={bucket.kind}://nowhere/run"]) != 0
    said = capsys.readouterr().err
    assert f"{bucket.kind}://nowhere/run: holds no run" in said or "there is no bucket" in said
    with pytest.raises(UserError, match="there is no bucket 'nowhere'; create it"):
        train(config_of(), f"{bucket.kind}://nowhere/run")


def test_refused(bucket):
    bucket.fault = lambda method, path: "403"
    with pytest.raises(UserError, match="access is refused .*(aws configure|gcloud auth)"):
        expand(bucket.address("refused"))


def test_no_credentials(bucket, monkeypatch, tmp_path):
    if bucket.kind == "gs":
        pytest.skip("gcsfs asks a server on this machine without credentials")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    bucket.files().clear_instance_cache()
    try:
        with pytest.raises(UserError, match="NoCredentials.*set AWS_ACCESS_KEY_ID"):
            expand(bucket.address("secret"))
    finally:
        bucket.files().clear_instance_cache()


def test_extra_is_missing(bucket, monkeypatch):
    package = {"gs": "gcsfs", "s3": "s3fs"}[bucket.kind]
    monkeypatch.setitem(sys.modules, package, None)
    known = sys.modules["fsspec.registry"]._registry
    for name in list(known):
        monkeypatch.delitem(known, name)
    with pytest.raises(UserError, match=rf"{package}, .* pip install 'jaxconv\[cloud\]'"):
        expand(bucket.address("x"))


def test_run_is_the_same(bucket, on_disk, tmp_path, monkeypatch, capsys):
    """A run in a bucket, and all that is done with it on a machine without a copy."""
    address = bucket.address("runs/whole")
    result = train(config_of(), address)
    assert numbers(expand(address)) == numbers(expand(on_disk)) and state_of(address) == state_of(
        on_disk
    )
    assert steps_in(bucket, "runs/whole") == sorted(
        int(path.name) for path in (on_disk / "checkpoints").iterdir()
    )
    assert {"curves.png", "config.json", ".index.json"} <= names_in(bucket, "runs/whole")
    assert ".writer" not in names_in(bucket, "runs/whole")
    other_machine(monkeypatch, tmp_path / "two")
    assert main(["curves", f"--workdir={address}"]) == 0
    assert not any((expand(address) / "checkpoints" / "24").iterdir())  # none is needed for it
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={address}"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["loss"] == result["loss"]
    assert main(["report", f"--workdir={address}"]) == 0
    assert f"{address}/report.html" in capsys.readouterr().out
    assert "report.html" in names_in(bucket, "runs/whole")
    write_images(tmp_path / "images", count=1)
    images = sorted(map(str, (tmp_path / "images").rglob("*.*")))
    assert main(["predict", f"--workdir={address}", images[0]]) == 0
    image = bucket.address("runs/pictures/image.png")
    assert main(["look", "filters", f"--workdir={address}", f"--out={image}"]) == 0
    assert bucket.files().cat_file(f"{BUCKET}/runs/pictures/image.png").startswith(b"\x89PNG")
    # The weights of the run are where another begins.
    started = train(config_of(**{"model.init_from": address, "steps": 4}), tmp_path / "tuned")
    assert started["loss"] < 1


def test_killed(bucket, on_disk, tmp_path, monkeypatch, caplog):
    """Killed after a checkpoint, then resumed by a machine without a copy: the same to the bit."""
    address, first = bucket.address("runs/killed"), tmp_path / "first"
    slow = "import time, jaxconv.train.loop as l; f = l.Run._save\n"
    slow += "l.Run._save = lambda *a, **k: (f(*a, **k), time.sleep(3))\n"
    slow += "import sys; from jaxconv.__main__ import main; sys.exit(main())"
    settings = process_settings(4)
    settings["env"] = settings["env"] | {"JAXCONV_CLOUD": str(first)}
    arguments = ["train", "--config=experiments/xo.py", f"--workdir={address}", *FLAGS]
    running = subprocess.Popen([sys.executable, "-c", slow, *arguments], **settings)
    try:
        end = time.monotonic() + 120
        while True:
            assert time.monotonic() < end and running.poll() is None
            found = bucket.files().exists(f"{BUCKET}/runs/killed/.index.json")
            if found and max(steps_in(bucket, "runs/killed"), default=0) >= 8:
                break
            time.sleep(0.2)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    left = steps_in(bucket, "runs/killed")
    assert 0 < max(left) < 24
    # What a kill left of the next checkpoint; the index does not name it.
    bucket.files().pipe_file(f"{BUCKET}/runs/killed/checkpoints/23/state/_METADATA", b"{")
    bucket.fault = lambda method, path: "no list"
    train(config_of(), address)
    assert "seeing for 2 s whether it is lost" in caplog.text
    assert numbers(expand(address)) == numbers(expand(on_disk)) and state_of(address) == state_of(
        on_disk
    )
    # The first machine has an older copy, which is of no matter.
    bucket.fault = lambda method, path: ""
    other_machine(monkeypatch, first)
    assert numbers(expand(address)) == numbers(expand(on_disk)) and state_of(address) == state_of(
        on_disk
    )


def test_damaged(bucket, on_disk, tmp_path, monkeypatch, caplog):
    address, path = bucket.address("runs/broken"), f"{BUCKET}/runs/broken"
    train(config_of(), address)
    files = bucket.files()
    # Half of a file of the last checkpoint, and a file of the one before is gone.
    steps = steps_in(bucket, "runs/broken")
    name = f"{path}/checkpoints/24/state/_METADATA"
    files.pipe_file(name, files.cat_file(name)[:99])
    other_machine(monkeypatch, tmp_path / "two")
    caplog.clear()
    assert train(config_of(), address) == train(config_of(), on_disk)
    said = [record.message for record in caplog.records if "is damaged" in record.message]
    assert (
        len(said) == 1 and "step 24 is damaged" in said[0] and "_METADATA has 99 bytes" in said[0]
    )
    assert state_of(address) == state_of(on_disk)
    assert steps_in(bucket, "runs/broken") == steps
    for step in steps:
        files.rm_file(f"{path}/checkpoints/{step}/state/_METADATA")
    other_machine(monkeypatch, tmp_path / "three")
    with pytest.raises(UserError, match="no checkpoint can be read; .*_METADATA is missing"):
        restore_run(expand(address))
    files.pipe_file(f"{path}/.index.json", b"{")
    other_machine(monkeypatch, tmp_path / "four")
    with pytest.raises(UserError, match=r"\.index\.json: is damaged"):
        expand(address)


def test_a_run_that_goes_on_is_watched(bucket, tmp_path, monkeypatch):
    address = bucket.address("runs/watched")
    place = expand(address)
    place.mkdir(parents=True)
    with cloud.Mirror(place, open(place / ".lock", "w")) as mirror:
        (place / "metrics.jsonl").write_text('{"step": 1}\n')
        mirror.push()
        other_machine(monkeypatch, tmp_path / "two")
        copy = expand(address)
        assert cloud.in_use(copy) and not cloud.in_use(tmp_path)
        seen = frames({"run": copy}, 0, lambda every: False)
        assert [row["step"] for row in next(seen)["run"]] == [1]
        (place / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
        mirror.push()
        assert [row["step"] for row in next(seen)["run"]] == [1, 2]
        monkeypatch.setenv("JAXCONV_CLOUD", str(tmp_path / "one"))
    assert not cloud.in_use(copy)


def test_another_machine_trains(bucket, tmp_path, monkeypatch):
    address = bucket.address("runs/taken")
    monkeypatch.setattr(cloud.mirror, "_RENEW", 0.5)
    place = expand(address)
    place.mkdir(parents=True)
    with cloud.Mirror(place, open(place / ".lock", "w")) as mirror:
        other_machine(monkeypatch, tmp_path / "two")
        with pytest.raises(UserError, match="another process is training there, on "):
            train(config_of(), address)
        # One that was taken for lost, and is not, writes no more.
        bucket.files().pipe_file(f"{BUCKET}/runs/taken/.writer", b'{"token": "other"}')
        with pytest.raises(UserError, match="another process trains there by now"):
            mirror.push()
        mirror._lost, mirror._token = False, "other"


def test_restart(bucket):
    address = bucket.address("runs/again")
    train(config_of(steps=4), address)
    with pytest.raises(UserError, match="holds a run with another config"):
        train(config_of(steps=4, seed=7), address)
    train(config_of(steps=4, seed=7), address, restart=True)
    assert steps_in(bucket, "runs/again") == steps_in(bucket, "runs/again.old-1") == [4]
    assert state_of(bucket.address("runs/again.old-1")) != state_of(address)


@pytest.mark.full
def test_sweep(bucket, tmp_path, monkeypatch, capsys):
    address = bucket.address("runs/sweep")
    sweep = ["sweep", "--config=experiments/xo.py", f"--workdir={address}", *FLAGS]
    sweep += ["--grid=seed=0:2", "--config.steps=4"]
    assert main([*sweep, "--launcher=print"]) == 0
    assert f"--workdir={address}/seed=0" in capsys.readouterr().out
    assert main(sweep) == 0
    other_machine(monkeypatch, tmp_path / "two")
    capsys.readouterr()
    assert main([*sweep, "--table"]) == 0
    said = capsys.readouterr().out
    assert said.count(" finished |") == 3 and f"workdir: {address}" in said
    assert main(["report", f"--workdir={address}"]) == 0
    assert {"report.html", "sweep.json"} <= names_in(bucket, "runs/sweep")


@pytest.mark.parametrize("mode", ["jit", pytest.param("fsdp", marks=pytest.mark.full)])
def test_two_processes_without_a_shared_folder(bucket, tmp_path, monkeypatch, mode):
    """Each has its own copy; what they were, they are again after both are killed."""
    address = bucket.address(f"runs/two_{mode}")
    flags = [*FLAGS, f"--config.parallel={mode}"]

    def start(steps, turn):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            at = f"127.0.0.1:{free.getsockname()[1]}"
        processes = []
        for n in range(2):
            settings = process_settings(2)
            settings["env"] = settings["env"] | {"JAXCONV_CLOUD": str(tmp_path / f"{turn}{n}")}
            arguments = ("train", "--config=experiments/xo.py", f"--workdir={address}", *flags)
            arguments += (f"--config.steps={steps}", f"--distributed={at},2,{n}")
            processes.append(
                subprocess.Popen(
                    command_line(*arguments), **settings, stdout=-1, stderr=subprocess.STDOUT
                )
            )
        said = [process.communicate(timeout=240)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said

    start(24, "a")
    assert main(["evaluate", f"--workdir={address}"]) == 0
    whole = state_of(address)
    # As if both had been killed after the step before the last.
    files, path = bucket.files(), f"{BUCKET}/runs/two_{mode}/.index.json"
    index = json.loads(files.cat_file(path))
    kept = {name: v for name, v in index["files"].items() if "checkpoints/24/" not in name}
    files.pipe_file(path, json.dumps({"number": index["number"] + 1, "files": kept}).encode())
    start(24, "b")
    other_machine(monkeypatch, tmp_path / "c")
    assert state_of(address) == whole
    jax.clear_caches()
