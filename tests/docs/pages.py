"""Runs a page of the documentation: its commands and its Python, in the order of the page.

The fence of a block of code says what it is:

    sh        commands, run one after the other in one folder that has the `materials`
    console   commands after `$`, and what they print, where `...` stands for anything
    python    Python, all blocks of a page in one program
    pycon     Python with what it prints, checked by doctest
    text      shown, not run: it needs several machines, the network, or hours

Commands are run as they are printed, but small: an experiment becomes its `:small`, and SMALL is
replaced and appended.
"""

import doctest
import os
import re
import shlex
import subprocess
from fnmatch import fnmatchcase

from jaxconv.__main__ import main
from tests.conftest import ROOT, command_line, process_settings, write_images
from tests.data.test_annotations import write_coco
from tests.data.test_nifti import write as write_volumes
from tests.launch.test_package import requirements
from tests.tasks.test_segmentation import write_masks

SHOWN = ("text", "diff", "{include}", "{toctree}", "{eval-rst}")
# What is appended to commands.
QUIET = tuple(f"--config.log.{key}=False" for key in ("progress", "tensorboard", "report"))
SHORT = ("--config.epochs=0", "--config.steps=2", "--config.batch_size=4", "--config.eval.every=2")
SMALL = {
    "train": QUIET,
    "sweep": QUIET,
    "finetune": (*QUIET, *SHORT, "--config.data.image_size=32"),
}
# Published weights that would be fetched, and their network.
REPLACED = {"=tv_in1k": "=weights", "=tv2_in1k": "=weights", "=resnet18": "=resnet20_cifar"}


def blocks_of(page):
    """(kind, text) of each block of code of a page of the checkout."""
    return re.findall(r"^```(\S*)[^\n]*\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


def commands_of(text):
    """The command lines of a block: continued lines are joined, comments left out."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    commands = [re.sub(r"(^|\s+)# .*$", "", line).strip() for line in lines]
    return [command for command in commands if command]


def small(arguments):
    """A command's arguments, so that it takes seconds, see SMALL."""
    arguments = [*arguments]
    for n, argument in enumerate(arguments):
        for printed, ours in REPLACED.items():
            if argument.endswith(printed):
                argument = argument.removesuffix(printed) + ours
        if argument.startswith("--config=jaxconv:"):
            _, name, *rest = argument.split(":")
            argument = f"--config=jaxconv:{name}:{'_'.join([*rest, 'small'])}"
        arguments[n] = argument
    return [*arguments, *SMALL.get(arguments[0], ())]


def lay_out(folder):
    """The materials: images, masks, objects and volumes, and something to call `jaxconv`."""
    write_images(folder / "photos", size=(40, 40), suffix="jpg")
    write_images(folder / "new_photos", splits=("",), size=(40, 40), suffix="jpg")
    photo = folder / "photo.jpg"
    photo.write_bytes((folder / "photos/test/cat/000.jpg").read_bytes())
    write_masks(folder / "scenes")
    write_coco(folder / "coco", split="train2017")
    write_volumes(folder / "scans", count=10)
    program = folder / "bin" / "jaxconv"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.join(command_line())} "$@"\n')
    program.chmod(0o755)


def make_weights(folder):
    """A run of the network in REPLACED, to start from."""
    network = "--config.model.name=resnet20_cifar"
    train = ["train", "--config=jaxconv:imagenet_resnet50:small", network, *QUIET]
    assert main([*train, f"--workdir={folder / 'weights'}"]) == 0


def run_command(line, folder, capsys):
    """Run one command line in the folder. Returns what it prints, and its exit code."""
    words = shlex.split(line)
    capsys.readouterr()
    if words[:2] == ["pip", "install"]:
        (what,) = [word for word in words if "[" in word]
        assert {*re.split(r"[\[\],]", what)[1:-1]} <= requirements().keys(), line
    elif words[0].startswith("./"):
        assert os.access(ROOT / words[0], os.X_OK), line
        if words[0].startswith("./launch/"):
            call = subprocess.run([*words, "--dry_run"], **process_settings(), capture_output=True)
            assert call.returncode == 0 and "jaxconv" in call.stdout, call.stderr
    elif words[:2] == ["jaxconv", "playground"]:
        # It serves until it is stopped.
        settings = process_settings() | {"cwd": folder}
        settings["env"] |= {"PYTHONPATH": str(ROOT)}
        command = command_line(*words[1:], "--port=0")
        with subprocess.Popen(command, **settings, stdout=subprocess.PIPE) as server:
            try:
                assert server.stdout.readline().startswith("http://127.0.0.1:"), line
            finally:
                server.terminate()
    elif words[0] == "jaxconv" and not re.search(r"[|<>]", line):
        try:
            code = main(small(words[1:]))
        except SystemExit as stop:  # after --help, or for a wrong command
            code = stop.code or 0
        return "".join(capsys.readouterr()), code
    else:
        settings = process_settings() | {"cwd": folder, "capture_output": True}
        settings["env"] |= {"PYTHONPATH": str(ROOT)}
        settings["env"]["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
        line = re.sub(
            r"jaxconv train.*", lambda m: "jaxconv " + shlex.join(small(m[0].split()[1:])), line
        )
        call = subprocess.run(["bash", "-euo", "pipefail", "-c", line], **settings)
        assert call.returncode == 0, f"{line}\n{call.stderr}"
    return "", 0


def run_page(page, folder, capsys, **names):
    """Run all blocks of a page in an empty folder, the current one.

    Args:
      names: of the program of its Python, before the first block.

    Returns:
      The names after the last block.
    """
    lay_out(folder)
    blocks = blocks_of(page)
    if any(printed in text for _, text in blocks for printed in ("=tv_in1k", "=tv2_in1k")):
        make_weights(folder)
    space = {"__name__": "page", **names}
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, page, "exec"), space)
        elif kind == "pycon":
            test = doctest.DocTestParser().get_doctest(text, space, page, page, 0)
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            found = []
            runner.run(test, out=found.append, clear_globs=False)
            assert not runner.failures, "".join(found)
            space |= test.globs
        elif kind == "sh":
            for line in commands_of(text):
                printed, code = run_command(line, folder, capsys)
                assert code == 0, f"{line}\n{printed}"
        elif kind == "console":
            for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
                line, _, wanted = re.sub(r"\\\n\s*", "", part).partition("\n")
                printed, code = run_command(line, folder, capsys)
                assert not code or "\njaxconv: " in f"\n{printed}", f"{line}\n{printed}"
                pattern = re.sub(r"\.\.\.", "*", re.sub(r"([\[\]*?])", r"[\1]", wanted)).strip()
                assert not pattern or fnmatchcase(printed.strip(), pattern), f"{line}\n{printed}"
        else:
            assert kind in SHOWN, f"{page}: ```{kind} is none of the kinds of blocks"
    return space
