"""Volumes with masks as NIfTI files."""

import json
import tarfile

import numpy as np
import pytest

from jaxconv.config import default_config, load_config, set_key
from jaxconv.data.interface import describe
from jaxconv.data.nifti import centred, held_out, standardised
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.run import train
from tests.conftest import ROOT, SHARED

nibabel = pytest.importorskip("nibabel")


def data(root, **changes):
    config = default_config().data
    config.source = f"nifti:{root}"
    for key, value in changes.items():
        config.nifti[key] = value
    return config


def save(path, values, axes=(1, 1, 1), spacing=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*np.multiply(axes, spacing), 1])), path)


def write(root, count=10, images="images", labels="labels"):
    random = np.random.default_rng(0)
    for n in range(count):
        shape = (6 + n % 3, 8, 5 + n % 2)
        mask = random.integers(0, 3, shape).astype(np.uint8)
        save(root / images / f"v{n}.nii.gz", (100 + 50 * mask).astype(np.int16))
        save(root / labels / f"v{n}.nii.gz", mask)
    return root


def test_volumes_have_one_size_and_one_scale(tmp_path):
    """By default the largest of the whole set; what is padded does not count."""
    source = open_source(data(write(tmp_path)), "train")
    assert source.image_shape == (8, 8, 6, 1) and source.class_names == ("0", "1", "2")
    assert source.targets["segmentation"].shape == (8, 8, 6)
    streamed = open_source(default_settings(tmp_path), "train")
    for i in range(len(source)):
        image, mask = source.read(i)["image"][..., 0], source.read(i)["segmentation"]
        counts = mask != 255
        inside = int(source.name(i)[-8])
        assert counts.sum() == (6 + inside % 3) * 8 * (5 + inside % 2)
        assert not image[~counts].any() and abs(image[counts].mean()) < 1e-5
        assert image[counts].std() == pytest.approx(1, abs=1e-5)
        # The classes are the grey values here.
        assert all(np.ptp(image[mask == k]) < 1e-5 for k in range(3))
        np.testing.assert_array_equal(streamed.read(i)["image"][..., 0], image)
    test = open_source(data(tmp_path), "test", like=describe(source))
    assert len(source) == 8 and len(test) == 2
    small = open_source(data(tmp_path, size=(4, 8, 5)), "train")
    assert small.image_shape == (4, 8, 5, 1)
    assert "volumes larger than (4, 8, 5), cropped: 8 of 8" in " ".join(small.notes)
    one = open_source(data(tmp_path, size=(4, 8, 5)), "test", like=describe(small))
    assert one.image_shape == small.image_shape


def default_settings(root):
    config = data(root)
    config.resident_limit = 0
    return config


def test_centred_and_standardised():
    values = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4, 1)
    found = centred(values, (4, 1, 4), 9)
    assert found.shape == (4, 1, 4, 1)
    np.testing.assert_array_equal(found[1:3], values[:, 1:2])
    assert (found[0] == 9).all() and (found[3] == 9).all()
    both = standardised(np.concatenate([values, values * 0 + 3], axis=-1))
    np.testing.assert_allclose(both[..., 0].mean(), 0, atol=1e-6)
    assert both[..., 0].std() == pytest.approx(1) and not both[..., 1].any()


def test_the_split_does_not_depend_on_the_order_and_has_its_share():
    names = [f"case{n}" for n in range(50)]
    chosen = {name for name, held in zip(names, held_out(names, 0.2, 0), strict=True) if held}
    assert len(chosen) == 10
    back = names[::-1]
    assert {n for n, held in zip(back, held_out(back, 0.2, 0), strict=True) if held} == chosen
    assert held_out(names, 0.2, 1).tolist() != held_out(names, 0.2, 0).tolist()
    with pytest.raises(UserError, match="test_fraction is 0.001, 0 of 50 volumes"):
        held_out(names, 0.001, 0)


def test_axes_are_turned_and_channels_kept(tmp_path):
    random = np.random.default_rng(0)
    values, mask = random.random((4, 5, 6, 2)).astype(np.float32), np.zeros((4, 5, 6), np.uint8)
    mask[0] = 1
    for name, axes in (("a", (1, 1, 1)), ("b", (-1, 1, 1)), ("c", (1, 1, 1)), ("d", (1, 1, 1))):
        save(tmp_path / "imagesTr" / f"{name}.nii", values, axes, spacing=2 if name == "c" else 1)
        save(tmp_path / "labelsTr" / f"{name}.nii", mask, axes)
    labels = {"labels": {"0": "rest", "1": "edge"}}
    (tmp_path / "dataset.json").write_text(json.dumps(labels))
    source = open_source(data(tmp_path, test_fraction=0.25), "train")
    assert source.class_names == ("rest", "edge") and source.image_shape == (4, 5, 6, 2)
    found = {source.name(i)[-5]: source.read(i) for i in range(3)}
    for name, example in found.items():
        side = -1 if name == "b" else 0
        assert (example["segmentation"][side] == 1).all()
        wanted = standardised(values[::-1] if name == "b" else values)
        np.testing.assert_allclose(example["image"], wanted, atol=1e-6)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"rest": 0, "edge": 1}}))
    assert open_source(data(tmp_path, test_fraction=0.25), "train").class_names == ("rest", "edge")
    whole = open_source(data(tmp_path, test_fraction=0.25), "train")
    assert "voxels of 2 different sizes" in " ".join(whole.notes) or "c" not in found


def test_what_cannot_be_used_is_named(tmp_path):
    write(tmp_path / "set")
    masks = tmp_path / "set" / "labels"
    (masks / "v3.nii.gz").unlink()
    source = open_source(data(tmp_path / "set"), "train")
    assert "volumes without a mask, left out: 1, such as v3.nii.gz" in " ".join(source.notes)
    refused = data(tmp_path / "set")
    refused.annotations = "refuse"
    with pytest.raises(UserError, match=r"v3.nii.gz: volumes without a mask"):
        open_source(refused, "train")
    (tmp_path / "set" / "classes.json").write_text('["a", "b"]')
    with pytest.raises(UserError, match=r"v\d.nii.gz: has the index 2, but there are 2 classes"):
        open_source(data(tmp_path / "set"), "train")
    (tmp_path / "set" / "classes.json").unlink()
    for n in range(10):
        save(masks / f"v{n}.nii.gz", np.zeros((3, 8, 5), np.uint8))
    with pytest.raises(UserError, match=r"v\d.nii.gz: is 3x8x5 voxels, but its image"):
        open_source(data(tmp_path / "set"), "train")
    with pytest.raises(UserError, match=r"is not split.* no 'val'"):
        open_source(data(tmp_path / "set"), "val")
    for path in (tmp_path / "set" / "images").iterdir():
        path.write_bytes(b"no volume")
    with pytest.raises(UserError, match=r"v\d.nii.gz: cannot be read as NIfTI"):
        open_source(data(tmp_path / "set"), "train")
    with pytest.raises(UserError, match="has neither .*train/images nor"):
        open_source(data(tmp_path / "nowhere"), "train")


@pytest.mark.slow
def test_a_small_u_net_trains_on_volumes(tmp_path, one_device):
    write(tmp_path / "set")
    config = load_config(f"{ROOT}/experiments/xo_segmentation.py:small", ["log.progress=False"])
    changes = {"data.source": f"nifti:{tmp_path / 'set'}", "data.mean": "0", "data.std": "1"}
    changes |= {"augment.flip": "False", "batch_size": "2", "eval.batch_size": "2"}
    for key, value in (changes | {"log.tensorboard": "False"}).items():
        set_key(config, key, value)
    result = train(config, str(tmp_path / "run"), devices=one_device)
    assert result["examples"] == 2 and np.isfinite(result["loss"])
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_scans_of_the_hippocampus(tmp_path):
    """Counts of the archive's README, and the share of a fifth."""
    archive = SHARED / "data" / "hippocampus.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{archive} not found")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    root = next(tmp_path.rglob("labels")).parent
    (root / "classes.json").write_text('["background", "anterior", "posterior"]')
    config = data(root, size=(40, 56, 40))
    config.resident_limit = 0
    splits = [open_source(config, split) for split in ("train", "test")]
    assert [len(split) for split in splits] == [208, 52]
    found = splits[1].read(0)
    assert found["image"].shape == (40, 56, 40, 1)
    assert set(np.unique(found["segmentation"]).tolist()) <= {0, 1, 2, 255}
    assert (found["segmentation"] == 1).sum() > 500
