"""nnunet serve: scans in, the masks of inference.py out; what is broken is refused, and the service lives."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.client
import io
import json
import socket
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("prometheus_client", reason="the extra serve is not installed")

from inference.predictor import Predictor
from scripts import inference
from serving.server import Place
from tests.serving.service import Client, form, running, save_calibrated, save_model, save_scan
from utils.errors import UserError

pytestmark = pytest.mark.slow
TOKEN = "correct horse battery"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def predictor(model) -> Predictor:
    return Predictor.load(model, device="cpu")


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> bytes:
    return save_scan(tmp_path_factory.mktemp("scan") / "a.nii.gz").read_bytes()


@pytest.fixture(scope="module")
def service(predictor):
    with running(predictor, upload_mb=1, voxels=100_000) as client:
        yield client


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Where the service puts what it is sent."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left(temporary: Path) -> list[Path]:
    """What lies in the private folder of the service."""
    assert all(own.stat().st_mode & 0o777 == 0o700 for own in temporary.iterdir())
    return [path for own in temporary.iterdir() for path in own.iterdir()]


def predicted(model: Path, folder: Path, output: Path) -> dict[str, bytes]:
    words = ["--input", folder, "--output", output, "--model", model, "--gpus", "0"]
    assert inference.main([*map(str, words)]) == 0
    return {path.name: path.read_bytes() for path in output.iterdir()}


def test_masks_are_those_of_inference_py_byte_by_byte(service, model, tmp_path):
    for seed, name in enumerate("ab"):
        save_scan(tmp_path / f"scans/{name}.nii.gz", seed=seed)
    expected = predicted(model, tmp_path / "scans", tmp_path / "masks")
    assert expected["a.nii.gz"] != expected["b.nii.gz"]
    for name in ("a.nii.gz", "b.nii.gz"):
        content = expected[name]
        status, body, headers = service.predict((tmp_path / "scans" / name).read_bytes())
        assert (status, headers["Content-Type"]) == (200, "application/gzip")
        assert body == content


def test_record_counts_what_the_mask_shows(service, scan):
    _, body, _ = service.predict(gzip.decompress(scan), answer="both")
    record = json.loads(body)
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(record["mask"])))
    voxels = np.asarray(mask.dataobj)
    assert [each["name"] for each in record["structures"]] == ["anterior", "posterior"]
    for each in record["structures"]:
        assert each["voxels"] == (voxels == each["value"]).sum()
        assert each["volume_ml"] == pytest.approx(each["voxels"] * 1.3 * 1.1 * 0.8 / 1000, abs=1e-6)
    assert voxels.any()
    assert record["shape_xyz"] == [12, 10, 14] and record["file"] == "mask.nii.gz"
    assert "mask" not in json.loads(service.predict(scan, answer="json")[1])


def test_a_record_that_is_too_long_for_a_header_is_cut_there_only(service, scan, monkeypatch):
    whole = json.loads(service.predict(scan, answer="json")[1])
    assert json.loads(service.predict(scan)[2]["X-Result"]).keys() == whole.keys()
    monkeypatch.setattr("serving.receiving.MOST_HEADER_BYTES", 400)
    text = service.predict(scan)[2]["X-Result"]
    short = json.loads(text)
    assert len(text) < 400 < len(json.dumps(whole)) and "answer=both" in short["left_out"]
    assert short["shape_xyz"] == whole["shape_xyz"] and short["doubt"]["score"] == whole["doubt"]["score"]
    assert json.loads(service.predict(scan, answer="both")[1])["structures"] == whole["structures"]


def test_doubt_is_that_of_inference_py(tmp_path):
    model = save_calibrated(tmp_path / "model")
    scan = save_scan(tmp_path / "scans/a.nii.gz")
    expected = json.loads(predicted(model, tmp_path / "scans", tmp_path / "masks")["a.doubt.json"])
    with running(Predictor.load(model, device="cpu")) as client:
        said = json.loads(client.predict(scan.read_bytes(), answer="json")[1])["doubt"]
        assert json.loads(client.predict(scan.read_bytes())[2]["X-Result"])["doubt"] == said
    assert said == {name: expected[name] for name in said}
    assert said.keys() == {"score", "calibrated", "doubtful", "words", "remarks"}
    # Else the comparison shows nothing.
    assert said["doubtful"] is True and said["score"] > 1 and any("field of view" in each for each in said["remarks"])


def test_channels_come_as_one_file_or_as_one_each(tmp_path):
    model = save_model(tmp_path / "model", num_channels=2)
    files = [save_scan(tmp_path / f"scans/a_{n:04}.nii.gz", seed=n) for n in range(2)]
    expected = predicted(model, tmp_path / "scans", tmp_path / "masks")["a.nii.gz"]
    images = [nib.load(path) for path in files]
    both = nib.Nifti1Image(np.stack([np.asarray(image.dataobj) for image in images], axis=-1), images[0].affine)
    with running(Predictor.load(model, device="cpu")) as client:
        assert client.predict(*(path.read_bytes() for path in files))[1] == expected
        assert client.predict(both.to_bytes())[1] == expected
        status, message = client.error(files[0].read_bytes())
        assert status == 422 and "channel" in message
        status, message = client.error(*[files[0].read_bytes()] * 3)
        assert status == 422 and "one for each of MRI 0, MRI 1" in message


def claims(shape, spacing_mm=1.0) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header.set_zooms((spacing_mm,) * 3)
    header["vox_offset"] = 352
    return header.binaryblock + bytes(4) + bytes(1000)


def bomb() -> bytes:
    return gzip.compress(claims((10, 10, 10)) + bytes(60_000_000))


BROKEN = {
    "empty": (b"", 422, "file 1 is empty"),
    "text": (b"hello, I am no scan", 422, "file 1 is not a NIfTI file"),
    "cut short": (gzip.compress(claims((10, 10, 10)))[:-30], 422, "file 1 is truncated or damaged"),
    "fewer voxels than stated": (claims((12, 12, 12)), 422, "file 1 is truncated"),
    "no voxels": (claims((0, 2, 2)), 422, "file 1 has shape"),
    "nothing but zeros": (claims((9, 9, 9)), 422, "voxel"),
    "voxels that are not there": (claims((1000, 1000, 1000)), 422, "file 1 is truncated: 1352 of 1000000352 bytes"),
    "more voxels than allowed": (claims((50, 50, 50)) + bytes(125_000), 413, "125000 voxels"),
    "gzip of far more than stated": (bomb(), 413, "unpacks to far more"),
    "voxels of half a metre": (claims((40, 40, 40), 500.0) + bytes(64_000), 422, "states a wrong voxel size"),
    "small until it is resampled": (claims((40, 40, 40), 9.0) + bytes(64_000), 413, "voxels on the model's grid"),
    "longer than allowed": (bytes(1_500_000), 413, "more than 1 MB"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_scan_gets_one_message_and_the_service_lives(service, scan, temporary, name):
    content, status, message = BROKEN[name]
    got = service.error(content)
    assert got[0] == status and message in got[1], got
    assert str(temporary) not in got[1]
    assert not left(temporary)
    assert service.predict(scan)[0] == 200


def test_names_of_a_client_reach_no_disk(service, scan, temporary, predictor, monkeypatch):
    seen = []
    work = predictor.stream

    def spy(*args):
        seen.extend(str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file())
        return work(*args)

    monkeypatch.setattr(predictor, "stream", spy)
    assert service.predict(scan, names=["../../../tmp/evil.sh"])[0] == 200
    assert [name.split("/", 2)[2] for name in seen] == ["scan_1.nii.gz"]
    assert not left(temporary)
    assert service.ask("assets/..%2f..%2fserver.py")[0] == 404
    assert service.ask("assets/serve.py")[0] == 404


def test_what_is_no_form_is_refused(service, scan):
    for body, kind in ((scan, "application/gzip"), (b"garbage", "multipart/form-data; boundary=x"),
                       form([scan], field_name="file"), (b"", "multipart/form-data")):  # fmt: skip
        status, answer, _ = service.ask("api/predict", body, Content_Type=kind)
        assert status in (400, 422) and list(json.loads(answer)) == ["error"]
    assert service.ask("api/predict?answer=film", *form([scan])[:1], Content_Type=form([])[1])[0] == 422
    assert service.ask("api/predict")[0] == 405 and service.ask("docs")[0] == 404


def test_a_body_without_a_length_is_counted(service):
    connection = http.client.HTTPConnection(service.url.split("/")[2], timeout=60)
    parts = (part for part in [form([b""])[0][:-13], *[bytes(100_000)] * 30])
    headers = {"Content-Type": form([])[1], "Transfer-Encoding": "chunked"}
    with contextlib.closing(connection):
        connection.request("POST", "/api/predict", parts, headers, encode_chunked=True)
        answer = connection.getresponse()
        assert (answer.status, b"more than 1 MB" in answer.read()) == (413, True)


def test_only_our_own_page_may_ask(service):
    host = service.url.split("/")[2]
    assert service.ask("api/model", Origin=f"http://{host}")[0] == 200
    assert service.ask("api/model", Origin="http://elsewhere.org")[0] == 403
    assert service.ask("api/model", Host="elsewhere.org")[0] == 403


def test_token(predictor, scan):
    with running(predictor, TOKEN) as client:
        stranger = Client(client.url)
        for path in ("", "health", "ready", "assets/serve.js"):
            assert stranger.ask(path)[0] == 200
        for path in ("api/model", "metrics", "openapi.json"):
            assert stranger.ask(path)[0] == 401
        for wrong in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe4"):
            assert Client(client.url, {"Authorization": wrong}).error(scan)[0] == 401
        assert client.predict(scan)[0] == 200


@pytest.mark.parametrize(
    ("host", "token", "message"),
    [("0.0.0.0", None, "needs a token"), ("::", "  ", "needs a token"), ("127.0.0.1", "short", "at least 16"),
     ("0.0.0.0", "two lines\nof sixteen letters", "printable")],
)  # fmt: skip
def test_a_place_that_others_reach_needs_a_token(tmp_path, monkeypatch, host, token, message):
    monkeypatch.delenv("NNUNET_SERVE_TOKEN", raising=False)
    file = None
    if token is not None:
        file = tmp_path / "token"
        file.write_text(token)
    with pytest.raises(UserError, match=message):
        Place(host=host, port=0, token_file=file).read_token()


def test_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(UserError, match="choose another --port"):
        Place(host="127.0.0.1", port=other.getsockname()[1], token_file=None).bind()


class Held:
    """Holds predictions back until they are let go."""

    def __init__(self, predictor, monkeypatch) -> None:
        self.begun, self.go, self.ended = threading.Semaphore(0), threading.Event(), []
        work = predictor.stream

        def wait(prepared, count, certainty):
            self.begun.release()
            while not self.go.wait(0.02):
                try:
                    count(None)
                except Exception as error:
                    self.ended.append(error)
                    raise
            return work(prepared, count, certainty)

        monkeypatch.setattr(predictor, "stream", wait)


def test_full_queue_is_answered_503_and_those_in_it_get_their_masks(predictor, scan, monkeypatch):
    held = Held(predictor, monkeypatch)
    with running(predictor, queue=1) as client, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.predict, scan) for _ in range(2)]
        assert held.begun.acquire(timeout=60)
        until(lambda: b"nnunet_places_taken 2.0" in client.ask("metrics")[1])
        status, body, headers = client.predict(scan)
        assert (status, headers["Retry-After"]) == (503, "10") and b"queue" in body
        held.go.set()
        assert [each.result()[0] for each in waiting] == [200, 200]
        text = client.ask("metrics")[1].decode()
    assert 'nnunet_requests_total{status="200"} 2.0' in text and 'nnunet_requests_total{status="503"} 1.0' in text
    assert "nnunet_places 2.0" in text and "nnunet_prediction_seconds_count 2.0" in text


def until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_work_that_takes_too_long_is_ended(predictor, scan, monkeypatch):
    held = Held(predictor, monkeypatch)
    with running(predictor, seconds=0.1) as client:
        status, message = client.error(scan)
        assert status == 504 and "longer than 0.1 s" in message
        assert len(held.ended) == 1


def test_work_for_a_client_that_went_away_is_ended(predictor, scan, monkeypatch):
    held = Held(predictor, monkeypatch)
    with running(predictor) as client:
        body, kind = form([scan])
        connection = http.client.HTTPConnection(client.url.split("/")[2])
        connection.request("POST", "/api/predict", body, {"Content-Type": kind})
        assert held.begun.acquire(timeout=60)
        connection.close()
        until(lambda: held.ended)
        held.go.set()
        assert client.predict(scan)[0] == 200


def test_connections_that_are_held_open_for_nothing_are_closed(predictor, scan, monkeypatch):
    from serving import connections

    monkeypatch.setattr(connections, "CHECK_S", 0.1)
    monkeypatch.setattr(connections, "STALLED_CHECKS", 2)
    held = Held(predictor, monkeypatch)

    def connect(content: bytes) -> socket.socket:
        one = socket.create_connection(("127.0.0.1", int(client.url.split(":")[2].strip("/"))))
        one.settimeout(60)
        one.sendall(content)
        return one

    with running(predictor) as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.predict, scan)
        assert held.begun.acquire(timeout=60)
        whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
        beginnings = (b"", b"GET /health HTTP/1.1\r\nHost: loc", whole + b"Content-Length: 9\r\n\r\na")
        for one in map(connect, beginnings):
            with contextlib.closing(one), contextlib.suppress(ConnectionResetError):
                while one.recv(1000):
                    pass
        # A client that reads nothing of what it asked for: more than the buffers of both sides hold.
        with contextlib.closing(connect((whole.replace(b"health", b"assets/niivue.js") + b"\r\n") * 20)) as one:
            time.sleep(1)
            got = 0
            with contextlib.suppress(ConnectionResetError):
                while part := one.recv(1 << 20):
                    got += len(part)
            assert got < 40e6
        # A request that is worked on is none of them.
        held.go.set()
        assert waiting.result()[0] == 200


def test_what_takes_too_long_when_the_service_ends_is_answered_503(predictor, scan, monkeypatch, capsys):
    held = Held(predictor, monkeypatch)
    monkeypatch.setattr("serving.server.GRACE_S", 1)
    with ThreadPoolExecutor(1) as pool:
        with running(predictor) as client:
            waiting = pool.submit(client.predict, scan)
            assert held.begun.acquire(timeout=60)
        status, body, _ = waiting.result()
    assert status == 503 and b"the service is ending" in body and len(held.ended) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_fault_inside_is_answered_500_and_told_to_the_log_only(predictor, scan, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("secret path /home/anna")

    with running(predictor) as client:
        monkeypatch.setattr(predictor, "stream", fail)
        status, message = client.error(scan)
        assert status == 500 and "anna" not in message
        monkeypatch.undo()
        assert client.predict(scan)[0] == 200
    assert "anna" in capsys.readouterr().err


def test_requests_of_many_clients_are_all_answered_and_leave_no_memory_behind(predictor, scan):
    def resident() -> float:
        lines = client.ask("metrics")[1].decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("process_resident_memory_bytes"))

    with running(predictor, queue=8) as client, ThreadPoolExecutor(8) as pool:
        [first] = {body for _, body, _ in pool.map(lambda _: client.predict(scan), range(8))}
        before = resident()
        answers = list(pool.map(lambda _: client.predict(scan), range(16)))
        assert [(status, body) for status, body, _ in answers] == [(200, first)] * 16
        assert resident() - before < 20e6


def test_the_log_names_nobody_though_the_client_hears_all(service, capfd):
    outside, damaged = io.BytesIO(), io.BytesIO()
    for place, name in ((outside, "../Doe_1.dcm"), (damaged, "Doe_2.dcm")):
        with zipfile.ZipFile(place, "w") as archive:
            archive.writestr(name, b"12345678")
    odd = b"NRRD0004\ntype: Doe_3\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n\n12345678"
    for number, content in enumerate((outside.getvalue(), damaged.getvalue().replace(b"123456", b"12345x"), odd), 1):
        status, message = service.error(content)
        assert status == 422 and f"Doe_{number}" in message
    said = capfd.readouterr().out
    assert "Doe" not in said and said.count("predict: 422 file 1 ") == 3 and "couldn't parse type ..." in said
