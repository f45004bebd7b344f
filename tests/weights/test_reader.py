"""Files of weights as they exist: read by content, whatever their name, without torch's help and
without running what they name; and the numbers in them.
"""

import argparse
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jaxconv.errors import UserError
from jaxconv.weights.reader import open_weights, read_state_dict

ARRAYS = {
    "conv1.weight": np.random.default_rng(0).standard_normal((4, 3, 2, 2), np.float32),
    "bn1.running_var": np.arange(4, dtype=np.float32),
    "fc.bias": np.float32([1.5, -2.0]),
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def tensors(torch):
    return {name: torch.from_numpy(value.copy()) for name, value in ARRAYS.items()} | {
        "bn1.num_batches_tracked": torch.tensor(7)
    }


def assert_read(path, expected=ARRAYS, **options):
    found = read_state_dict(path, **options)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], value)


# torch.save since 1.6, and before.
FORMS = [{}, {"_use_new_zipfile_serialization": False}]


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize(
    "name",
    ["a.pt", "a.pth", "a.th", "model_best.pth.tar", "last.ckpt", "pytorch_model.bin", "x", "a.npz"],
)
def test_any_name(torch, tmp_path, name, options):
    torch.save({"state_dict": tensors(torch)}, tmp_path / name, **options)
    assert_read(tmp_path / name)


def test_safetensors_and_npz_under_any_name(tmp_path):
    save_file(ARRAYS, tmp_path / "model.bin")
    assert_read(tmp_path / "model.bin")
    np.savez(tmp_path / "a.npz", **ARRAYS)
    np.savez_compressed(tmp_path / "b.npz", **ARRAYS)
    for name in ("a.npz", "b.npz"):
        assert_read((tmp_path / name).rename(tmp_path / "model.pth"))


@pytest.mark.parametrize("options", FORMS)
def test_strides_offsets_shared_storage_and_empty(torch, tmp_path, options):
    whole = torch.arange(24.0).reshape(2, 3, 4)
    made = {
        "transposed": whole.transpose(0, 2),
        "part": whole[1, 1:, ::2],
        "wide": torch.tensor([3.0]).expand(2, 5),
        "empty": whole[:0],
        "whole": whole,
        "scalar": torch.tensor(2.5),
    }
    torch.save(made, tmp_path / "a.pth", **options)
    assert_read(tmp_path / "a.pth", {name: value.numpy() for name, value in made.items()})


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float8_e4m3fn"])
def test_dtypes(torch, tmp_path, dtype, options):
    values = torch.tensor([0.5, -3.0, 1.25]).to(getattr(torch, dtype))
    torch.save({"a": values}, tmp_path / "a.pth", **options)
    assert_read(tmp_path / "a.pth", {"a": values.float().numpy()})


def test_bfloat16_of_safetensors(torch, tmp_path):
    from safetensors.torch import save_file as save

    save({"a": torch.tensor([0.5, -3.0], dtype=torch.bfloat16)}, tmp_path / "a")
    assert_read(tmp_path / "a", {"a": np.float32([0.5, -3.0])})


@pytest.mark.parametrize("options", FORMS)
def test_parameters_and_tensors_with_attributes(torch, tmp_path, options):
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    marked = torch.tensor([3.0])
    marked.note = "mine"
    noted = torch.nn.Parameter(torch.tensor([4.0]), requires_grad=False)
    noted.note = "mine"
    torch.save({"a": parameter, "b": marked, "c": noted}, tmp_path / "a.pth", **options)
    assert_read(tmp_path / "a.pth", {"a": [1, 2], "b": [3], "c": [4]})


class Settings(dict):
    """As Lightning's AttributeDict and mmengine's ConfigDict."""


def everything_else(torch):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    return {
        "args": argparse.Namespace(lr=0.1, net=Settings(depth=18)),
        "hyper_parameters": Settings(loss=torch.nn.CrossEntropyLoss(), to=torch.device("cpu")),
        "callbacks": {"best": np.float64(0.5), "names": {"a", "b"}, "arrays": np.ones(3)},
        "optimizer": optimizer.state_dict(),
        "when": [pickle.loads, Settings, range(3), 2**70, 1j, b"bytes", None],
        "rng_state": torch.get_rng_state(),
    }


@pytest.mark.parametrize("options", [*FORMS, {"pickle_protocol": 4}])
def test_a_checkpoint_with_objects_of_its_script_is_read(torch, tmp_path, options):
    torch.save({"model": tensors(torch), **everything_else(torch)}, tmp_path / "a.pth", **options)
    assert_read(tmp_path / "a.pth")


@pytest.mark.parametrize("options", FORMS)
def test_nothing_that_a_file_names_is_run(torch, tmp_path, options):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/run",)

    class Deep:
        def __reduce__(self):
            return eval, (f"open({str(tmp_path / 'run')!r}, 'w')",)

    torch.save({"model": tensors(torch), "e": Evil(), "d": [Deep()]}, tmp_path / "a", **options)
    assert_read(tmp_path / "a")
    assert not (tmp_path / "run").exists()


def test_neither_torch_nor_the_script_is_needed(torch, tmp_path):
    torch.save({"model": tensors(torch), "args": argparse.Namespace(lr=1)}, tmp_path / "a.pth")
    program = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path\n"
        "from jaxconv.weights.reader import read_state_dict\n"
        "print(sorted(read_state_dict(Path(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.pth"], capture_output=True, text=True
    )
    assert done.stdout.strip() == str(sorted(ARRAYS)), done.stderr


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.filterwarnings("ignore")  # of torch, on the sources of classes
def test_whole_networks_are_refused_with_what_to_do(torch, tmp_path, options):
    net = torch.nn.Sequential(torch.nn.Linear(2, 3))
    adam = {"state": {0: {"exp_avg": torch.ones(3)}}}
    for state in (net, {"model": net, "epoch": 3}, {"model": net, "optimizer": adam}):
        torch.save(state, tmp_path / "a.pth", **options)
        with pytest.raises(UserError, match=r"whole network \(torch.*Sequential\).*state_dict\(\)"):
            read_state_dict(tmp_path / "a.pth")
    torch.save({"model": net, "state_dict": tensors(torch)}, tmp_path / "b.pth", **options)
    assert_read(tmp_path / "b.pth")
    with pytest.raises(UserError, match="whole network"):
        read_state_dict(tmp_path / "b.pth", "model")


@pytest.mark.filterwarnings("ignore")  # of torch, on what goes away
def test_other_kinds_of_tensors_are_named(torch, tmp_path):
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    for odd, message in (
        (quantized, "a.weight: not a plain tensor .*qtensor"),
        (np.ones(3), "a.weight: not a plain tensor .*numpy.*np.savez"),
        (torch.eye(3).to_sparse(), "a.weight: not a plain tensor .*sparse"),
        (torch.ones(3, dtype=torch.int8), "a.weight is int8"),
        (torch.ones(3, dtype=torch.complex64), "a.weight is complex64"),
        (torch.ones(3, device="meta"), "a.weight: not a plain tensor .*meta"),
    ):
        torch.save({"a.weight": odd, "b": torch.ones(3)}, tmp_path / "a.pth")
        with pytest.raises(UserError, match=message):
            read_state_dict(tmp_path / "a.pth")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_weights_of_a_diverged_training_are_refused_by_name(tmp_path, wrong):
    arrays = {f"layer{n}": np.full(3, wrong, np.float32) for n in range(6)} | ARRAYS
    save_file(arrays, tmp_path / "a")
    with pytest.raises(UserError) as error:
        read_state_dict(tmp_path / "a")
    assert "NaN or infinity in layer0, layer1, layer2, layer3 and 2 more" in str(error.value)
    # Too large for float32.
    save_file({"a": np.array([1e300])}, tmp_path / "a")
    with pytest.raises(UserError, match="infinity in a:"):
        read_state_dict(tmp_path / "a")
    # Not in what is taken.
    np.savez(tmp_path / "a.npz", **{"model.a": np.ones(2), "model_ema.a": np.full(2, wrong)})
    assert_read(tmp_path / "a.npz", {"a": [1, 1]})


def tar(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))


def zipped(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


@pytest.mark.filterwarnings("ignore")  # of torch, on what goes away
def test_what_a_file_is_instead_is_said(torch, tmp_path):
    made = {
        "empty": (b"", "is empty"),
        "html": (b"\n<!DOCTYPE html>", "web page"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(600), "Keras"),
        "json": (b'{"weight_map": {}}', "JSON"),
        "gz": (b"\x1f\x8b\x08", "gzip"),
        "noise": (bytes(range(100, 200)), "neither safetensors, nor of torch.save"),
        "zip": (b"PK\x03\x04 cut off", "cannot be read as PyTorch weights"),
        "pickle": (b"\x80\x02not a pickle", "cannot be read as PyTorch weights"),
        "python": (pickle.dumps({"a": 1}), "not one of torch.save"),
    }
    for name, (content, _) in made.items():
        (tmp_path / name).write_bytes(content)
    tar(tmp_path / "tar")
    zipped(tmp_path / "docx", ["word/document.xml"])
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "jit")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    made |= {
        "tar": (b"", "tar archive"),
        "docx": (b"", "not one of torch.save or of np.savez; it holds word/document.xml"),
        "jit": (b"", "TorchScript"),
        "objects.npz": (b"", "allow_pickle"),
    }
    for name, (_, message) in made.items():
        with pytest.raises(UserError) as error:
            read_state_dict(tmp_path / name)
        assert message in str(error.value) and name in str(error.value), name
        assert error.value.exit_code == 1 and "\n" not in str(error.value)


@pytest.mark.parametrize("options", FORMS)
def test_damage_anywhere_is_an_error_or_changes_nothing_but_numbers(torch, tmp_path, options):
    torch.save({"model": tensors(torch), "args": argparse.Namespace()}, tmp_path / "a", **options)
    content = (tmp_path / "a").read_bytes()

    def read(changed):
        (tmp_path / "b").write_bytes(changed)
        try:
            return read_state_dict(tmp_path / "b")
        except UserError:
            return None

    @settings(max_examples=150, deadline=None)
    @given(st.integers(0, len(content) - 1), st.integers(0, 255))
    def flipped(place, byte):
        read(content[:place] + bytes([byte]) + content[place + 1 :])

    flipped()
    for length in range(0, len(content), 97):
        assert read(content[:length]) is None


def test_a_tensor_beyond_its_storage_is_refused(torch, tmp_path):
    from jaxconv.weights.pickled import Tensor, _Storage

    storage = _Storage(np.dtype("<f4"), "0", 0, lambda key: bytes(16))
    for shape, strides, offset in (
        ((5,), (1,), 0),
        ((2, 2), (3, 1), 0),
        ((2,), (1,), 3),
        ((2,), (-1,), 1),
        ((2,), (1,), -1),
        ((10**15,), (0,), 0),
        ((2, 2), (1,), 0),
        ("a", (1,), 0),
    ):
        with pytest.raises(ValueError, match="of shape .* is damaged"):
            np.asarray(Tensor(shape, storage.dtype, strides, offset, storage))
    np.testing.assert_array_equal(Tensor((4,), storage.dtype, (1,), 0, storage), np.zeros(4))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="lists open files by /proc")
def test_files_are_closed(torch, tmp_path):
    torch.save(tensors(torch), tmp_path / "a.pth")
    torch.save(tensors(torch), tmp_path / "old.pth", **FORMS[1])
    save_file(ARRAYS, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **ARRAYS)
    (tmp_path / "bad.pth").write_bytes(b"PK\x03\x04 cut off")

    def opened():
        links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
        return [os.readlink(link) for link in links if os.path.lexists(link)]

    for path in sorted(tmp_path.iterdir()):
        try:
            with open_weights(path):
                assert str(path) in opened() or "safetensors" in path.name  # mapped into memory
        except UserError:
            assert path.name == "bad.pth"
        assert str(path) not in opened()


# ONNX


def onnx_file(path, form="raw", **arrays):
    onnx = pytest.importorskip("onnx")
    tensors = [
        onnx.numpy_helper.from_array(value, name)
        if form == "raw"
        else onnx.helper.make_tensor(name, getattr(onnx.TensorProto, form), value.shape, value)
        for name, value in arrays.items()
    ]
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    nodes = [onnx.helper.make_node("Identity", ["x"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "g", [value], [], tensors)
    onnx.save(onnx.helper.make_model(graph, producer_name="a test"), path)


def test_initializers_of_onnx(tmp_path):
    onnx_file(tmp_path / "a", **ARRAYS, shape=np.array([1, -1]))  # a shape is no weight
    assert_read(tmp_path / "a")
    onnx_file(tmp_path / "b", a=np.float64([[0.5], [2]]), b=np.float16([1.5, -2]))
    assert_read(tmp_path / "b", {"a": [[0.5], [2]], "b": [1.5, -2]})


@pytest.mark.parametrize("form", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"])
def test_values_of_onnx_that_are_not_raw(tmp_path, form):
    onnx_file(tmp_path / "a", form, a=np.float32([[0.5, -3], [1.25, 0]]))
    assert_read(tmp_path / "a", {"a": [[0.5, -3], [1.25, 0]]})


def test_integers_of_onnx_are_said(tmp_path):
    for form in ("INT8", "UINT8", "INT32"):
        onnx_file(tmp_path / "a", form, **{"w": np.array([1, 2, -3 * (form != "UINT8")])})
        with pytest.raises(UserError, match=f"a: w is {form.lower()}, not floating point"):
            read_state_dict(tmp_path / "a")


def test_onnx_with_its_arrays_elsewhere_is_refused_with_what_to_do(tmp_path):
    onnx = pytest.importorskip("onnx")
    onnx_file(tmp_path / "a", w=np.ones((64, 64), np.float32))
    model = onnx.load(tmp_path / "a")
    onnx.save(model, tmp_path / "b", save_as_external_data=True, size_threshold=0, location="w.bin")
    with pytest.raises(UserError, match="b: keeps w in another file; .*save_as_external_data"):
        read_state_dict(tmp_path / "b")


def files_of_every_kind(folder):
    """One small file of each kind that is read."""
    torch = pytest.importorskip("torch")
    for number, options in enumerate(FORMS):
        values = {name: torch.from_numpy(value.copy()) for name, value in ARRAYS.items()}
        state = {"model": values, "args": argparse.Namespace()}
        torch.save(state, folder / f"torch{number}", **options)
    save_file(ARRAYS, folder / "safetensors")
    np.savez(folder / "a.npz", **ARRAYS)
    (folder / "a.npz").rename(folder / "npz")
    onnx_file(folder / "onnx", **ARRAYS)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("changes", [60, pytest.param(1000, marks=pytest.mark.full)])
def test_changed_bytes(tmp_path, changes):
    """A file in which a byte has changed is read or refused in one line that names it."""
    random = np.random.default_rng(changes)
    for path in files_of_every_kind(tmp_path):
        content, refused = path.read_bytes(), 0
        for place, byte in zip(
            random.integers(0, len(content), changes), random.bytes(changes), strict=True
        ):
            changed = path.with_name("changed")
            changed.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
            try:
                read_state_dict(changed)
            except UserError as error:
                refused += 1
                assert "changed" in str(error) and "\n" not in str(error), path
        assert refused, path
        for length in range(0, len(content), max(1, len(content) // 40)):
            changed.write_bytes(content[:length])
            with pytest.raises(UserError):
                read_state_dict(changed)
