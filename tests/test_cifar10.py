"""The main job on real photographs: the quick CIFAR-10 network on part of the set, for a short
while.
"""

import json

import pytest

from tests.conftest import command

pytestmark = pytest.mark.full


def test_real_photographs(tmp_path, cifar10):
    """Well above the 10% of guessing after half a minute on 4,000 of them; and the picture count is
    exact.
    """
    for split, count in (("train", 400), ("test", 100)):
        for folder in (cifar10 / split).iterdir():
            place = tmp_path / "some" / split / folder.name
            place.mkdir(parents=True)
            for file in sorted(folder.iterdir())[:count]:
                (place / file.name).symlink_to(file)
    process = command(
        "train",
        "--config=experiments/cifar10_quick.py",
        f"--config.data.source=folder:{tmp_path / 'some'}",
        f"--workdir={tmp_path / 'run'}",
        "--config.epochs=4",
        "--config.log.report=False",
        "--config.optimizer.schedule.warmup_steps=20",
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert result["examples"] == 1000
    assert result["top1"] > 0.3
    assert json.loads((tmp_path / "run" / "data.json").read_text())["class_names"][:3] == [
        "airplane",
        "automobile",
        "bird",
    ]
