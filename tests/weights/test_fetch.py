"""Files from addresses and from the Hugging Face hub, by a server of our own on the loopback: cut
connections, wrong digests, a full disk, two processes at once, no network.
"""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxconv.errors import UserError
from jaxconv.weights import fetch
from jaxconv.weights.fetch import cached, digest_in, hub_of, sha256_of
from tests.conftest import ROOT
from tests.weights.hub import COMMIT, serving

CONTENT = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCONV_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "_PAUSE", 0.01)
    with serving() as served:
        yield served


def left_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.suffix not in (".lock", ""))


def test_a_file_is_fetched_once_and_checked(hub, tmp_path):
    url = hub.add("net", CONTENT)
    found = fetch.fetch(url).path
    assert found.read_bytes() == CONTENT and found.parent == tmp_path / "cache"
    assert fetch.fetch(url).path == found and len(hub.asked) == 1
    assert cached(url) == found and cached(url + "x") is None
    # A file that has changed since is not used.
    found.write_bytes(CONTENT[:-1])
    assert fetch.fetch(url).path.read_bytes() == CONTENT and len(hub.asked) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_cut_connections_are_continued(hub, ranges):
    hub.ranges, hub.cuts = ranges, [100_000, 0, 0, 50_000, 1]
    url = hub.add("net", CONTENT)
    assert fetch.fetch(url).path.read_bytes() == CONTENT
    asked = [header for _, _, header in hub.asked]
    starts = [None, *(f"bytes={start}-" for start in (100_000, 100_000, 100_000, 150_000, 150_001))]
    if ranges:
        assert asked == starts
    else:
        assert len(asked) == 6


def test_a_part_of_an_earlier_process_is_continued(hub, tmp_path):
    url = hub.add("net", CONTENT)
    part = tmp_path / "cache" / (url.rpartition("/")[2] + ".part")
    part.parent.mkdir()
    part.write_bytes(CONTENT[:200_000])
    assert fetch.fetch(url).path.read_bytes() == CONTENT
    assert hub.asked[-1][2] == "bytes=200000-" and not part.exists()


@pytest.mark.parametrize("wrong", [b"x" * 1000, b"x" * 400_000, CONTENT])
def test_a_part_of_something_else_is_fetched_anew(hub, tmp_path, wrong):
    url = hub.add("net", CONTENT)
    part = tmp_path / "cache" / (url.rpartition("/")[2] + ".part")
    part.parent.mkdir()
    part.write_bytes(wrong)
    assert fetch.fetch(url).path.read_bytes() == CONTENT
    assert not part.exists()


def test_what_is_not_the_file_is_not_kept(hub, tmp_path):
    url = hub.add("net", CONTENT, begins="00000000")
    with pytest.raises(UserError, match=r"not the file: its SHA-256 is \w{8}\.\.\., not 00000000"):
        fetch.fetch(url)
    assert left_in(tmp_path / "cache") == []
    right = hub.add("net", CONTENT)
    with pytest.raises(UserError, match="not the file"):
        fetch.fetch(right, sha256="1" * 64)
    assert fetch.fetch(right, sha256=hashlib.sha256(CONTENT).hexdigest()).path.is_file()


def test_servers_that_fail(hub, tmp_path):
    url = hub.add("net", CONTENT)
    place = tmp_path / "cache" / url.rpartition("/")[2]
    for status, requests in ((403, 1), (404, 1), (503, 3)):
        hub.denied, hub.asked = {"/" + url.split("/", 3)[3]: (status, "")}, []
        with pytest.raises(UserError) as error:
            fetch.fetch(url)
        assert f"the server says {status}" in str(error.value) and len(hub.asked) == requests
        assert f"whose SHA-256 begins with {digest_in(url)}, and put it at {place}" in str(
            error.value
        )
    # Nobody listens there.
    with pytest.raises(UserError, match=r"cannot be fetched \(ConnectionRefused.*bring that file"):
        fetch.fetch("http://127.0.0.1:9/net-00000000.pth")
    with pytest.raises(UserError, match="begins with https"):
        fetch.fetch(f"file://{tmp_path}/net.pth")


def test_offline_a_file_that_was_brought_is_used(hub, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    url = hub.add("net", CONTENT)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set") as error:
        fetch.fetch(url)
    place = re.search(r"put it at (\S+)$", str(error.value))[1]
    (tmp_path / "cache").mkdir(exist_ok=True)
    with open(place, "wb") as file:
        file.write(CONTENT)
    assert str(fetch.fetch(url).path) == place and not hub.asked
    os.remove(place)
    # torch.hub's cache, if its file is the right one.
    there = tmp_path / "torch" / "hub" / "checkpoints" / url.rpartition("/")[2]
    there.parent.mkdir(parents=True)
    there.write_bytes(CONTENT)
    assert fetch.fetch(url).path == there
    there.write_bytes(b"other")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        fetch.fetch(url)
    assert f"{there}: is not used: its SHA-256 is" in caplog.text


def test_a_disk_without_room(hub, tmp_path, monkeypatch):
    url = hub.add("net", CONTENT)
    usage = fetch.shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fetch.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(UserError, match=r"300 kB to fetch, 1\.0 kB free\); make room"):
            fetch.fetch(url)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXCONV_WEIGHTS", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="cannot be written .*set JAXCONV_WEIGHTS"):
        fetch.fetch(url)


PROGRAM = """
import resource, sys
from jaxconv.errors import UserError
from jaxconv.weights.fetch import fetch
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    print(fetch(sys.argv[1]).path)
except UserError as error:
    sys.exit(f"jaxconv: {error}")
"""


def start(*args):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, args)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits file sizes by POSIX")
def test_a_disk_that_is_full_in_the_middle_is_one_line_and_leaves_nothing(hub, tmp_path):
    url = hub.add("net", CONTENT)
    process = start(url, 100_000)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and len(errors.strip().splitlines()) == 1, errors
    assert "cannot be written (File too large); make room" in errors
    assert left_in(tmp_path / "cache") == []


@pytest.mark.slow
def test_two_processes_fetch_it_once(hub, tmp_path):
    url = hub.add("net", CONTENT)
    hub.held.clear()
    processes = [start(url), start(url)]
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.wait)
            stack.callback(process.kill)
        end = time.monotonic() + 60
        while not hub.asked and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(1.5)  # the other one waits by now
        hub.held.set()
        outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len({out for out, _ in outputs}) == 1 and len(hub.asked) == 1
    assert sha256_of(tmp_path / "cache" / url.rpartition("/")[2]).startswith(digest_in(url))


def test_places_of_the_hub():
    hub = hub_of("hf:timm/resnet50.a1_in1k@767268603ca0cb0bfe326fa87277f19c419566ef:a/b.bin")
    assert (hub.repo, hub.file) == ("timm/resnet50.a1_in1k", "a/b.bin")
    assert hub.revision.startswith("7672") and hub_of("hf:a/b").revision == ""
    for wrong in ("hf:", "hf:a", "hf:a/b/c", "hf:../b", "hf:a/b@", "hf:a/b:../../x", "hf:a b/c"):
        with pytest.raises(UserError, match="must be hf:OWNER/REPO"):
            hub_of(wrong)


# Where each step's outcome is printed: the hub's library reads its environment once.
OF_HUB = """
import json, os, sys
from jaxconv.errors import UserError
from jaxconv.weights import fetch
for step in json.loads(sys.argv[1]):
    try:
        found = fetch.fetch(*step)
        print(json.dumps([str(found.path), found.revision]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def of_hub(hub, tmp_path, *steps, **environment):
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "hf")} | environment
    settings |= {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "secret", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OF_HUB, json.dumps(steps)],
        cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_the_hub(hub, tmp_path):
    pytest.importorskip("huggingface_hub")
    digest = hashlib.sha256(CONTENT).hexdigest()
    hub.files |= {"/timm/net/model.safetensors": CONTENT, "/me/old/pytorch_model.bin": b"abc"}
    hub.denied = {
        f"/{repo}/{file}": said
        for repo, said in {
            "no/such": (401, "RepoNotFound"),
            "my/gated": (403, "GatedRepo"),
            "my/moved": (404, "RevisionNotFound"),
        }.items()
        for file in fetch.HUB_FILES
    }
    found = of_hub(
        hub,
        tmp_path,
        ("hf:timm/net",),
        ("hf:timm/net", COMMIT, digest),
        ("hf:timm/net", "", "0" * 64),
        ("hf:me/old",),
        ("hf:timm/net:other.bin",),
        ("hf:no/such",),
        ("hf:my/gated",),
        ("hf:my/moved@v7",),
    )
    path, revision = found[0]
    assert revision == COMMIT and path.startswith(str(tmp_path / "hf")) and found[1] == found[0]
    assert f"is not the file: its SHA-256 is {digest[:64]}" in found[2]
    assert found[3][0].endswith("pytorch_model.bin")
    assert "hf:timm/net: has no file other.bin" in found[4]
    assert "hf:no/such: there is no such repository" in found[5] and "HF_TOKEN" in found[5]
    assert "wants your consent" in found[6] and "has no revision 'v7'" in found[7]
    asked = len(hub.asked)
    # What is in the cache needs no network; for the rest there is one line that says what to do.
    offline = of_hub(hub, tmp_path, ("hf:timm/net",), ("hf:timm/more",), HF_HUB_OFFLINE="1")
    place = tmp_path / "cache" / "timm" / "more" / "model.safetensors"
    assert offline[0] == found[0] and len(hub.asked) == asked
    assert offline[1].startswith(f"model.safetensors of {hub.url}/timm/more/tree/main")
    assert offline[1].endswith(f"(HF_HUB_OFFLINE is set); bring that file and put it at {place}")
    place.parent.mkdir(parents=True)
    place.write_bytes(b"brought")
    assert of_hub(hub, tmp_path, ("hf:timm/more",), HF_HUB_OFFLINE="1") == [[str(place), ""]]


def test_without_the_hub_s_library(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"huggingface_hub, .*pip install 'jaxconv\[hub\]'"):
        fetch.fetch("hf:timm/net")
    assert cached("hf:timm/net") is None
