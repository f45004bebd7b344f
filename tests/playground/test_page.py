"""The server: which requests it answers, what it accepts, and how it refuses the rest."""

import asyncio
import contextlib
import dataclasses
import json
import re
import signal
import socket
import struct
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClosedError, websocket_connect

import jaxconv.playground
from jaxconv.__main__ import main
from jaxconv.data import xo
from jaxconv.errors import UserError
from jaxconv.look.opened import open_model
from jaxconv.models import create_model
from jaxconv.playground import connection as page
from jaxconv.playground.guard import allowed, is_loopback, listen, own_names
from jaxconv.playground.server import Playground
from jaxconv.playground.shown import sample
from tests.conftest import (
    assert_one_line_error,
    command,
    command_line,
    process_settings,
    write_images,
)
from tests.playground.serving import SMALL, parts, served, until


@pytest.fixture(scope="module")
def place():
    with served() as (playground, address):
        until(lambda: playground.trainer.status == "paused")
        playground.trainer.set(SMALL)
        until(
            lambda: playground.trainer.status == "paused" and playground.trainer.parameters < 3000
        )
        yield playground, address


def get(address, path="/", **headers):
    """(status, text, headers) of a file."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://{address}{path}", headers=headers)
        ) as response:
            return response.status, response.read().decode(), response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def talk(address, conversation, origin=None):
    """Open a page's WebSocket, and hold a conversation of (say, hear)."""

    async def run():
        headers = {"Origin": f"http://{address}" if origin is None else origin}
        connection = await websocket_connect(
            HTTPRequest(f"ws://{address}/socket", headers={k: v for k, v in headers.items() if v})
        )

        ended = False

        async def hear(kind):
            nonlocal ended
            while True:
                message = await asyncio.wait_for(connection.read_message(), 30)
                if message is None:
                    ended = True
                    return None
                if isinstance(message, bytes):
                    if kind == "answer":
                        return parts(message)
                elif json.loads(message)["kind"] == kind:
                    return json.loads(message)

        async def say(content):
            await connection.write_message(
                content if isinstance(content, bytes) else json.dumps(content),
                isinstance(content, bytes),
            )

        try:
            return await conversation(say, hear, connection)
        finally:
            connection.close()
            if not ended:
                await hear("nothing")

    return asyncio.run(run())


def test_the_page_comes_from_here_alone(place):
    _, address = place
    _, html, headers = get(address)
    assert (
        "default-src 'none'" in headers["Content-Security-Policy"]
        and "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    )
    assert (
        headers["X-Content-Type-Options"] == "nosniff"
        and "Access-Control-Allow-Origin" not in headers
    )
    linked = re.findall(r'(?:href|src)="([^"]*)"', html)
    assert set(linked) == {"data:,", "page.css", "page.js"}
    for name in ("page.html", "page.css", "page.js"):
        text = (Path(jaxconv.playground.__file__).parent / name).read_text()
        assert not [
            found
            for found in re.findall(r"https?://[^\s\"'`]+", text)
            if found not in ("http://www.w3.org/2000/svg",)
        ]
        assert "@import" not in text and "eval(" not in text and "innerHTML" not in text
    assert get(address, "/page.py")[0] == 404


@pytest.mark.parametrize("path", ["/", "/page.js", "/socket"])
def test_a_bent_name_is_refused(place, path):
    _, address = place
    status, text, _ = get(address, path, Host="attacker.example:80")
    assert status == 421 and "html" not in text


@pytest.mark.parametrize(
    ("host", "own", "fine"),
    [
        ("127.0.0.1:8400", "127.0.0.1", True),
        ("localhost:8400", "127.0.0.1", True),
        ("[::1]:8400", "127.0.0.1", True),
        ("192.168.1.7:8400", "0.0.0.0", True),
        ("workstation:8400", "workstation", True),
        ("Workstation", "workstation", True),
        ("workstation:8400", "0.0.0.0", False),
        ("attacker.example", "127.0.0.1", False),
        ("127.0.0.1.attacker.example", "127.0.0.1", False),
        ("localhost.attacker.example:8400", "127.0.0.1", False),
        ("[::1", "127.0.0.1", False),
        ("", "127.0.0.1", False),
    ],
)
def test_names_that_are_answered_to(host, own, fine):
    assert allowed(host, own_names(own)) is fine


def test_the_machine_s_own_names(monkeypatch):
    """Only where other machines can connect; and never a longer name that starts like them."""
    monkeypatch.setattr(socket, "gethostname", lambda: "Desk")

    def looked_up(name, port, flags):
        assert (name, flags) == ("Desk", socket.AI_CANONNAME)
        return [(0, 0, 0, "desk.lab.example.org", ()), (0, 0, 0, "", ())]

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    names = own_names("0.0.0.0", ["proxy.example.org"])
    for host in ("desk:8400", "DESK", "desk.local:8400", "desk.lab.example.org", "desk.:1"):
        assert allowed(host, names) and not allowed(host, own_names("127.0.0.1")), host
    assert allowed("Proxy.example.org:80", names)
    for host in ("desk.attacker.example", "lab.example.org", "attacker.example", "x.desk.local"):
        assert not allowed(host, names), host

    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert own_names("0.0.0.0") == {"localhost", "0.0.0.0", "desk", "desk.local"}
    assert "" not in own_names("")


@pytest.mark.slow
def test_the_command_answers_to_this_machine_s_name_and_to_allowed_ones():
    process = subprocess.Popen(
        command_line("playground", "--host=0.0.0.0", "--port=0", "--allowed_hosts=a.example,b-c"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **process_settings(),
    )
    try:
        port = int(re.search(r"http://0.0.0.0:(\d+)/", process.stdout.readline())[1])
        for name, status in (
            (socket.gethostname(), 200),
            ("a.example", 200),
            ("b-c", 200),
            ("attacker.example", 421),
        ):
            found = get(f"127.0.0.1:{port}", "/", Host=f"{name}:{port}")
            assert found[0] == status, found
        assert "allow it by --allowed_hosts=NAME" in found[1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "origin", ["http://attacker.example", "null", "http://127.0.0.1:1", "file://", ""]
)
def test_other_sites_cannot_open_the_socket(place, origin):
    _, address = place

    async def nothing(*_):
        return None

    with pytest.raises(HTTPClientError, match="403"):
        talk(address, nothing, origin)


def test_pictures_are_answered(place):
    playground, address = place

    async def conversation(say, hear, _):
        welcome = await hear("welcome")
        assert (
            welcome["xo"]
            and welcome["shape"] == [16, 16, 1]
            and welcome["classes"] == ["o", "x"]
            and not welcome["run"]
        )
        variation = {"translation": 0.1, "scaling": 0.2, "rotation": 30, "weight": 0, "noise": 0.1}
        await say({"do": "sample", "id": 1, "figure": "x", "number": 4, "variation": variation})
        header, picture, _, _ = await hear("answer")
        assert (
            header["id"] == 1
            and header["truth"] == "x"
            and header["which"] == "trained"
            and header["step"] == 0
        )
        np.testing.assert_array_equal(
            picture, sample("x", 4, (16, 16, 1), xo.Variation(**variation))
        )
        await say(
            {
                "do": "draw",
                "id": 2,
                "strokes": [[[0.2, 0.2], [0.8, 0.8]], [[0.2, 0.8], [0.8, 0.2]]],
                "weight": 0,
                "fit": True,
            }
        )
        header, picture, _, _ = await hear("answer")
        assert header["id"] == 2 and "truth" not in header
        np.testing.assert_allclose(
            picture.astype(int), sample("x", 0, (16, 16, 1), xo.Variation()), atol=1
        )
        return header

    header = talk(address, conversation)
    shown, variables = playground.trainer.network
    same, *_ = parts(shown.answer(variables, sample("x", 0, (16, 16, 1), xo.Variation()), {}))
    np.testing.assert_allclose(
        [v["vote"] for v in header["votes"]], [v["vote"] for v in same["votes"]], atol=0.05
    )


def test_training_is_pushed_while_it_runs(place):
    _, address = place

    async def conversation(say, hear, _):
        await say({"do": "train", "how": "step"})
        while (message := await hear("training"))["step"] != 1 or message["status"] != "paused":
            pass
        header, *_ = await hear("answer")
        assert header["id"] == 0 and header["step"] == 1
        await say({"do": "train", "how": "start"})
        steps = [(await hear("answer"))[0]["step"] for _ in range(4)]
        assert steps == sorted(steps) and steps[-1] > 1
        await say({"do": "train", "how": "pause"})
        while (message := await hear("training"))["status"] != "paused":
            pass
        await say({"do": "set", "rate": 0.5})
        message = await hear("training")
        assert message["rate"] == 0.5 and [point[0] for point in message["points"]][0] == 1
        await say({"do": "set", "rate": 0.02})

    talk(address, conversation)


NO_VARIATION = dict.fromkeys(("translation", "scaling", "rotation", "weight", "noise"), 0)
NETWORK = {**SMALL.network, "batch_size": 32}
BAD = [
    ("not JSON", "is not JSON"),
    ([1, 2], "not a JSON object"),
    ("[" * 90_000, "is not JSON"),
    (" " * 100_001, "has 100,001 characters; at most 100,000 are read"),
    ({}, "has no valid 'do'"),
    ({"do": "fly"}, "unknown action 'fly'; the actions are draw, sample"),
    (
        {
            "do": "sample",
            "id": 5,
            "figure": "z",
            "number": 0,
            "variation": dict.fromkeys(
                ("translation", "scaling", "rotation", "weight", "noise"), 0
            ),
        },
        "unknown figure 'z'",
    ),
    (
        {"do": "sample", "id": 5, "figure": "x", "number": 0, "variation": {"translation": 0}},
        "has no valid 'scaling'",
    ),
    ({"do": "sample", "id": -5, "figure": "x", "number": -1}, "number is -1"),
    (
        {"do": "draw", "id": 6, "strokes": [[[0, "a"]]], "weight": 0, "fit": True},
        "not a list of lines",
    ),
    ({"do": "draw", "id": 6, "strokes": [], "weight": 1e300, "fit": True}, "weight is 1e"),
    ({"do": "draw", "id": 6, "strokes": [], "weight": 3, "fit": True}, "xo.weight is 3"),
    ({"do": "test", "id": 7, "number": 0}, "there are no test images"),
    ({"do": "look", "id": 8, "network": "run"}, "no network 'run'"),
    ({"do": "train", "how": "sideways"}, "unknown training command 'sideways'"),
    ({"do": "set", "rate": float("nan")}, "rate is nan"),
    ({"do": "set", "settings": {"filters": [4]}}, "the settings must be filters,"),
    ({"do": "set", "settings": {**NETWORK, "filters": 3}}, "filters: 3 is not a list"),
    ({"do": "set", "settings": {**NETWORK, "neurons": "16"}}, "neurons: '16' is not a list"),
    (
        {"do": "set", "settings": {**NETWORK, "batch_size": 9999}},
        "batch size: 9999 is not a whole number from 1 to 256",
    ),
    (
        {
            "do": "set",
            "settings": {
                **SMALL.network,
                "batch_size": 32,
                "pool_window": 5,
                "pool_stride": 5,
                "filters": [4, 4],
            },
        },
        "pool2: (3 - 5)/5 + 1 = 0.60: a 5-wide window is larger than 3",
    ),
    (struct.pack("<I", 9) + b"GIF89a", "neither a JPEG nor a PNG"),
    (b"\x01", "neither a JPEG nor a PNG"),
]


def test_bad_messages_are_answered_in_a_line_and_end_nothing(place):
    playground, address = place

    async def conversation(say, hear, connection):
        for content, words in BAD:
            if isinstance(content, str):
                await connection.write_message(content)
            else:
                await say(content)
            message = await hear("problem")
            assert words in message["message"], (content, message)
            assert "Traceback" not in message["message"] and "\n" not in message["message"]
            if isinstance(content, dict) and content.get("id", -1) > 0:
                assert message["id"] == content["id"] and message["of"] == content["do"]

    talk(address, conversation)
    assert playground.trainer.settings == SMALL


def test_whatever_an_action_raises_is_told_in_a_line(place, monkeypatch, caplog):
    playground, address = place

    async def fail(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: out\nof memory")

    async def conversation(say, hear, connection):
        with monkeypatch.context() as patch:
            patch.setattr(page.Page, "_answer", fail)
            await say({"do": "look", "id": 3, "network": "trained"})
            assert await hear("problem") == {
                "kind": "problem",
                "of": "look",
                "id": 3,
                "message": "RuntimeError: RESOURCE_EXHAUSTED: out of memory",
            }
            await say(
                struct.pack("<I", 4) + (Path(__file__).parents[2] / "docs/xo.png").read_bytes()
            )
            assert (await hear("problem"))["id"] == 4
        with monkeypatch.context() as patch:  # during training, which updates the page by itself
            patch.setattr(page.Page, "_answer", fail)
            await say({"do": "train", "how": "step"})
            message = await hear("problem")
            assert message["of"] == "picture" and "out of memory" in message["message"]
            until(lambda: playground.trainer.status == "paused")
        await say({"do": "look", "id": 5, "network": "trained"})
        while (await hear("answer"))[0]["id"] != 5:
            pass
        return connection.close_code

    assert talk(address, conversation) is None
    said = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in said] == [
        "look of a page failed: RuntimeError: RESOURCE_EXHAUSTED: out of memory"
    ]
    assert not said[0].exc_info  # no traceback


def test_a_page_is_told_where_it_is_served(place):
    _, address = place

    async def conversation(say, hear, _):
        return await hear("welcome")

    welcome = talk(address, conversation)
    assert (welcome["host"], welcome["alone"]) == ("127.0.0.1", True)
    with served(host="0.0.0.0") as (_, address):
        welcome = talk(address, conversation)
    assert (welcome["host"], welcome["alone"]) == ("0.0.0.0", False)


def test_too_much_is_cut_off(place, monkeypatch):
    playground, address = place

    monkeypatch.setattr(page, "_BURST", 50.0)
    monkeypatch.setattr(page, "_RATE", 1.0)

    async def fast(say, hear, connection):
        with contextlib.suppress(WebSocketClosedError):
            for _ in range(100):
                await say({"do": "train", "how": "pause"})
        assert await hear("nothing") is None
        return connection.close_code, connection.close_reason

    assert talk(address, fast) == (1008, "too many messages")

    async def long(say, hear, connection):
        with contextlib.suppress(WebSocketClosedError):  # before all of it is sent
            await say(bytes(page.MOST_BYTES + 100))
        assert await hear("nothing") is None

    talk(address, long)

    async def one(say, hear, connection):
        assert await hear("nothing") is None
        return connection.close_code, connection.close_reason

    monkeypatch.setattr(page, "_BURST", 600.0)
    until(lambda: not playground.pages)
    monkeypatch.setattr(page, "MOST_PAGES", 0)
    assert talk(address, one) == (1013, "0 pages are open already; close one")


def test_only_loopback_is_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.1.2", "::", "workstation", "")))


def test_a_run_that_looks_at_no_images_is_refused():
    looked = open_model("chain")
    looked.data["kind"] = "signal"
    with pytest.raises(
        UserError, match="chain, random weights: takes signals; the playground is for images"
    ):
        Playground(looked, looked.config)


def test_a_run_s_network_and_test_images(tmp_path):
    """A run on a folder offers its labeled test images; without the folder, only dropped images."""
    folder = write_images(tmp_path / "images", size=(16, 16))
    looked = open_model("chain")
    looked.config.data.source, looked.config.data.image_size = f"folder:{folder}", 0
    looked.data["image_shape"], looked.data["class_names"] = [16, 16, 3], ["cat", "dog"]
    model = create_model("chain", 2)
    variables = model.init(jax.random.key(1), np.zeros((1, 16, 16, 3), np.float32), train=False)
    looked = dataclasses.replace(
        looked, model=model, variables=variables, class_names=("cat", "dog"), folder=tmp_path
    )

    async def conversation(say, hear, _):
        welcome = await hear("welcome")
        assert (welcome["tests"], welcome["run"], welcome["xo"]) == (
            12,
            "chain, random weights",
            False,
        )
        await say({"do": "test", "id": 1, "number": 7})
        header, picture, filters, _ = await hear("answer")
        with Image.open(folder / "test" / "dog" / "001.png") as image:
            np.testing.assert_array_equal(picture, np.asarray(image))
        assert (
            header["truth"] == "dog" and header["which"] == "run" and filters.shape == (3, 3, 3, 16)
        )
        votes = model.apply(
            variables, (picture[None].astype(np.float32) / 255 - 0.5) / 0.5, train=False
        )[0]
        np.testing.assert_allclose([vote["vote"] for vote in header["votes"]], votes, atol=1e-4)
        await say({"do": "draw", "id": 2, "strokes": [], "weight": 0, "fit": True})
        assert "drop an image or choose a test image" in (await hear("problem"))["message"]
        await say({"do": "test", "id": 3, "number": 12})
        assert (
            "number is 12; it must be a whole number from 0 to 11"
            in (await hear("problem"))["message"]
        )
        await say(struct.pack("<I", 4) + (folder / "test" / "cat" / "000.png").read_bytes())
        header, picture, *_ = await hear("answer")
        assert header["id"] == 4 and "truth" not in header and picture.shape == (16, 16, 3)

    with served(looked, looked.config) as (_, address):
        talk(address, conversation)
    folder.rename(tmp_path / "elsewhere")
    with served(looked, looked.config) as (playground, _):
        assert playground.run.source is None
        playground.trainer.start()
        until(lambda: playground.trainer.status == "stopped")
        assert "folder not found" in playground.trainer.message


def test_a_taken_port_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError, match=f"--port={port}: another program is listening there; choose another"
        ):
            listen("127.0.0.1", port)
        assert_one_line_error(
            command("playground", f"--port={port}"),
            2,
            f"--port={port}: another program is listening there",
        )


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--port=70000", "--port=70000: must be at most 65535"),
        (
            "--host=no.such.name.invalid",
            "--host=no.such.name.invalid --port=8400: cannot listen there",
        ),
        ("--workdir=/nowhere", "--workdir=/nowhere: holds no run"),
        ("--config.seed=1", "playground takes no config"),
        ("--allowed_hosts=http://a", "'http://a' is not a name"),
        ("--allowed_hosts=a,,b", "'' is not a name"),
        ("--allowed_hosts=a:80", "'a:80' is not a name"),
    ],
)
def test_bad_commands_are_one_line(argument, words, capsys):
    assert main(["playground", argument]) == 2
    said = capsys.readouterr().err
    assert said.startswith("jaxconv: ") and words in said and said.count("\n") == 1


@pytest.mark.slow
def test_the_command_serves_warns_and_ends_cleanly():
    process = subprocess.Popen(
        command_line("playground", "--host=0.0.0.0", "--port=0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **process_settings(),
    )
    try:
        line = process.stdout.readline()
        port = int(re.search(r"http://0.0.0.0:(\d+)/   \(Ctrl-C stops it\)", line)[1])
        assert "jaxconv playground" in get(f"127.0.0.1:{port}")[1]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and out == "stopped\n"
    assert err.splitlines() == [
        "jaxconv: --host=0.0.0.0: anyone who can reach this machine over the network can use the "
        "page, without a password; without --host only this machine can"
    ]
