"""export-model --format triton: what it writes, and what a real server answers with it."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import json
import re
import resource
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from inference.engines import conversion
from inference.predictor import Predictor
from scripts import export_model, inference
from serving import triton_repository
from tests.conftest import PROJECT
from tests.serving.service import save_calibrated, save_model, save_scan
from tests.serving.triton_server import packages_of_pytriton, triton
from utils.errors import run_cli
from utils.nifti import read_image, read_label, write_volume

NAME = "task04_test"


@pytest.fixture
def without_onnx(monkeypatch):
    """As where the extra is not installed; converting takes seconds."""
    monkeypatch.setattr(triton_repository, "ONNX_PACKAGES", ("no_such_package",))


def export(model: Path, output: Path) -> int:
    words = ["--model", model, "--output", output, "--format", "triton"]
    return run_cli(lambda: export_model.main([*map(str, words)]))


@pytest.mark.slow
def test_repository_holds_the_model_and_its_configuration(tmp_path, capsys, without_onnx):
    model = save_model(tmp_path / "model", num_channels=2)
    assert export(model, tmp_path / "repository") == 0
    said = capsys.readouterr().out
    assert f"as the model {NAME}" in said and "(ONNX) are left out: ONNX needs the package no_such_package" in said
    files = {str(path.relative_to(tmp_path / "repository")) for path in (tmp_path / "repository").rglob("*.*")}
    assert files == {f"scans/{NAME}/config.pbtxt", f"scans/{NAME}/1/model.py", f"scans/{NAME}/1/model.zip"}
    config = (tmp_path / f"repository/scans/{NAME}/config.pbtxt").read_text(encoding="utf-8")
    assert "dims: [ 2, -1, -1, -1 ]" in config and "KIND_AUTO" in config and f'name: "{NAME}"' in config
    read = parsed(tmp_path / f"repository/scans/{NAME}/config.pbtxt")
    assert (read.name, read.backend, read.max_batch_size) == (NAME, "python", triton_repository.MOST_SCANS)
    assert types_and_shapes(read.input)["SCAN"] == ("TYPE_UINT8", [-1])
    assert types_and_shapes(read.output).keys() == {"MASK", "DOUBT", "RECORD", "MASK_FILE"}
    assert Predictor.load(tmp_path / f"repository/scans/{NAME}/1/model.zip", device="cpu").plan.dataset == "Task04_Test"
    assert export(model, tmp_path / "repository") == 2
    assert "exists" in capsys.readouterr().err


def parsed(path: Path):
    """A config.pbtxt as Triton's own description of such files reads it; no name may be unknown to it."""
    package = pytest.importorskip("tritonclient", reason="the extra triton is not installed").__path__[0]
    text_format = pytest.importorskip("google.protobuf.text_format", reason="protobuf is not installed")
    # Its package would import gRPC, which the extra does without.
    spec = importlib.util.spec_from_file_location("model_config_pb2", Path(package) / "grpc/model_config_pb2.py")
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Protobuf gencode version", UserWarning)
        spec.loader.exec_module(module)
    return text_format.Parse(path.read_text(encoding="utf-8"), module.ModelConfig())


def types_and_shapes(tensors) -> dict[str, tuple[str, list[int]]]:
    """Name -> type as Triton calls it, and shape without the batch."""
    return {
        each.name: (type(each).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[each.data_type].name,
                    list(each.dims))
        for each in tensors
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True], ids=["", "weights beside"])
def test_networks_alone_are_a_repository_of_their_own(large, tmp_path, monkeypatch):
    """There is no ONNX Runtime backend in nvidia-pytriton: the file is held to the network that it describes."""
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    for package in triton_repository.ONNX_PACKAGES:
        pytest.importorskip(package, reason="the extra onnx is not installed")
    if large:
        monkeypatch.setattr(conversion, "MOST_INLINE_BYTES", 1000)
    assert export(save_model(tmp_path / "model", num_channels=2), tmp_path / "repository") == 0
    assert sorted(path.name for path in (tmp_path / "repository").iterdir()) == ["networks", "scans"]
    [folder] = (tmp_path / "repository/networks").iterdir()
    assert folder.name == f"{NAME}_last"
    config, path = parsed(folder / "config.pbtxt"), folder / "1/model.onnx"
    assert (config.name, config.backend, config.max_batch_size) == (folder.name, "onnxruntime", 4)
    onnx.checker.check_model(path, full_check=True)
    network = onnx.load(path).graph
    for ours, theirs in ((config.input, network.input), (config.output, network.output)):
        found = {}
        for each in theirs:
            batch, *dims = each.type.tensor_type.shape.dim
            # Any number of windows: a name and no number.
            assert batch.dim_param and not batch.dim_value
            kind = {onnx.TensorProto.FLOAT: "TYPE_FP32"}[each.type.tensor_type.elem_type]
            found[each.name] = kind, [dim.dim_value for dim in dims]
        assert types_and_shapes(ours) == found
    assert types_and_shapes(config.input)["image"][1][0] == 2 and len(types_and_shapes(config.output)["logits"][1]) == 4
    assert large == any(path.suffix == ".data" for path in folder.rglob("*"))


def test_names_of_checkpoints_become_names_that_servers_take(tmp_path):
    (tmp_path / "made/2d").mkdir(parents=True)
    for ending in ("onnx", "onnx.data"):
        (tmp_path / f"made/2d/epoch=8-dice=0.8669.{ending}").write_bytes(b"x")
    written = {"file": "2d/epoch=8-dice=0.8669.onnx", "weights": [{"file": "2d/epoch=8-dice=0.8669.onnx.data"}]}
    side = {"name": "image", "shape": ["windows", 1, 8, 8]}
    stage = {"input": side, "output": side | {"name": "logits"}}
    triton_repository._write_network(tmp_path, NAME, tmp_path / "made", written, stage)
    folder = tmp_path / f"{NAME}_2d_epoch_8-dice_0_8669"
    assert {path.name for path in (folder / "1").iterdir()} == {"model.onnx", "epoch=8-dice=0.8669.onnx.data"}
    assert f'name: "{folder.name}"' in (folder / "config.pbtxt").read_text(encoding="utf-8")


def client_of_the_docs(address: str, scan: Path, target: Path) -> None:
    """Run the example of docs/how-to/serve.md, with its names replaced by ours."""
    text = (PROJECT / "docs/how-to/serve.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(import json\n\nimport numpy as np\nimport tritonclient.*?)```", text, re.DOTALL)
    for theirs, ours in (("localhost:8000", address), ("scan.nii.gz", str(scan)), ("mask.nii.gz", str(target)),
                         ("task04_hippocampus", NAME)):  # fmt: skip
        assert theirs in code
        code = code.replace(theirs, ours)
    exec(compile(code, "docs/how-to/serve.md", "exec"), {})


@pytest.mark.slow
def test_a_real_server_answers_with_the_masks_of_inference_py(tmp_path, without_onnx):
    packages_of_pytriton()
    http = pytest.importorskip("tritonclient.http", reason="the extra triton is not installed")
    model = save_calibrated(tmp_path / "model")
    scan = save_scan(tmp_path / "scans/a.nii.gz")
    words = ["--input", scan.parent, "--output", tmp_path / "masks", "--model", model, "--gpus", "0"]
    assert inference.main([*map(str, words)]) == 0
    expected = (tmp_path / "masks/a.nii.gz").read_bytes()
    assert export(model, tmp_path / "repository") == 0
    (tmp_path / "server").mkdir()
    with triton(tmp_path / "repository/scans", tmp_path / "server") as address:
        client_of_the_docs(address, scan, tmp_path / "got.nii.gz")
        assert (tmp_path / "got.nii.gz").read_bytes() == expected
        with http.InferenceServerClient(address, concurrency=4) as client:
            _check_arrays(http, client, Predictor.load(model, device="cpu"))
            _check_doubt(http, client, scan.read_bytes(), tmp_path / "masks/a.doubt.json")
            _check_formats(http, client, scan, tmp_path)
            _check_faults(http, client, scan.read_bytes())
            content = np.frombuffer(scan.read_bytes(), np.uint8)[None]
        # Formats have been imported, and each client has asked once or twice, before memory is looked at.
        assert _masks(http, address, content, number=16) == {expected}
        before = memory_of(tmp_path)
        assert _masks(http, address, content, number=100) == {expected}
        assert memory_of(tmp_path) < 1.05 * before


def _masks(http, address: str, content: np.ndarray, number: int) -> set[bytes]:
    """Masks that 8 clients are given, who ask at the same time; none is lost."""
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda _: ask(http, address, SCAN=content).as_numpy("MASK_FILE").tobytes(), range(number))
        files = list(answers)
    assert len(files) == number
    return set(files)


def memory_of(folder: Path) -> int:
    """Bytes in memory of the processes that have a folder in their command line: the server and what runs model.py."""
    pages = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (process / "cmdline").read_bytes():
                pages += int((process / "statm").read_text().split()[1])
    assert pages, "the server runs"
    return pages * resource.getpagesize()


def inputs(http, **arrays: np.ndarray) -> list:
    made = []
    for name, array in arrays.items():
        made.append(http.InferInput(name, array.shape, "FP32" if array.dtype == np.float32 else "UINT8"))
        made[-1].set_data_from_numpy(array)
    return made


def ask(http, address: str, **arrays: np.ndarray):
    with http.InferenceServerClient(address) as client:
        return client.infer(NAME, inputs(http, **arrays))


def _check_arrays(http, client, predictor: Predictor) -> None:
    """Two scans of one size in a request, each by its own spacing."""
    images = np.random.default_rng(3).uniform(1, 9, (2, 1, 13, 10, 15)).astype(np.float32)
    spacing = np.array([[1.2, 1.0, 0.9], [2.0, 1.5, 1.0]], np.float32)
    masks = client.infer(NAME, inputs(http, IMAGE=images, SPACING_MM=spacing)).as_numpy("MASK")
    for image, size, mask in zip(images, spacing.tolist(), masks, strict=True):
        np.testing.assert_array_equal(mask, predictor.predict(image, size))
    assert len(np.unique(masks)) > 1


def _check_doubt(http, client, scan: bytes, expected: Path) -> None:
    """Score and verdict are those of inference.py, for a file and for several arrays with records of other lengths."""
    answer = client.infer(NAME, inputs(http, SCAN=np.frombuffer(scan, np.uint8)[None]))
    record, known = json.loads(answer.as_numpy("RECORD").tobytes()), json.loads(expected.read_bytes())
    assert record["doubt"] == {name: known[name] for name in record["doubt"]} and record["doubt"]["doubtful"] is True
    assert answer.as_numpy("DOUBT") == pytest.approx(np.array([[known["score"]]]))
    mask = answer.as_numpy("MASK")
    assert [each["voxels"] for each in record["structures"]] == [int((mask == value).sum()) for value in (1, 2)]
    images = np.random.default_rng(3).uniform(1, 9, (2, 1, 13, 10, 15)).astype(np.float32)
    images[1, 0, :12] = 5
    spacing = np.ones((2, 3), np.float32)
    records = client.infer(NAME, inputs(http, IMAGE=images, SPACING_MM=spacing)).as_numpy("RECORD")
    assert len(records) == 2 and all(json.loads(each.tobytes())["doubt"]["calibrated"] for each in records)


def _check_formats(http, client, scan: Path, folder: Path) -> None:
    """Other formats come as they are, and go as they are asked for."""
    pytest.importorskip("SimpleITK", reason="the extra formats is not installed")
    volume = read_image([scan])
    write_volume(folder / "a.nrrd", volume.array[0], volume.geometry)
    content = np.fromfile(folder / "a.nrrd", np.uint8)[None]
    for options, ending in (({}, ".nrrd"), ({"parameters": {"format": "nii.gz"}}, ".nii.gz")):
        answer = client.infer(NAME, inputs(http, SCAN=content), **options)
        (folder / f"got{ending}").write_bytes(answer.as_numpy("MASK_FILE").tobytes())
        np.testing.assert_array_equal(read_label(folder / f"got{ending}").array, answer.as_numpy("MASK")[0])
    with pytest.raises(http.InferenceServerException, match="there is no format 'film'"):
        client.infer(NAME, inputs(http, SCAN=content), parameters={"format": "film"})


def _check_faults(http, client, scan: bytes) -> None:
    def error(**arrays: np.ndarray) -> str:
        with pytest.raises(http.InferenceServerException) as caught:
            client.infer(NAME, inputs(http, **arrays))
        return str(caught.value)

    image = np.ones((1, 1, 8, 8, 8), np.float32)
    for content, message in ((scan[:60], "file 1 is truncated"), (b"no scan at all", "file 1 is not a NIfTI"),
                             (gzip.compress(bytes(500)), "file 1 is not a NIfTI")):  # fmt: skip
        assert message in error(SCAN=np.frombuffer(content, np.uint8)[None])
    assert "send IMAGE and SPACING_MM, or SCAN" in error(IMAGE=image)
    for size in (0, -1, np.nan, np.inf):
        assert "positive voxel sizes" in error(IMAGE=image, SPACING_MM=np.full((1, 3), size, np.float32))
    assert "the header states a wrong voxel size" in error(IMAGE=image, SPACING_MM=np.full((1, 3), 1e4, np.float32))
    assert "NaN" in error(IMAGE=image * np.float32("nan"), SPACING_MM=np.ones((1, 3), np.float32))
    assert client.is_server_ready() and client.is_model_ready(NAME)
