"""A service that runs in a thread of the test, and a client of the standard library."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np

from inference.input_check import reference_of
from inference.predictor import Predictor
from serving.limits import Limits
from tests.inference.looks import calibrated, plain_look
from tests.models.builders import make_plan, make_stage, with_spacing
from tests.models.checkpoints import save_ours
from tests.tiny_task import write_scan
from utils.files import write_json


def save_model(folder: Path, num_channels: int = 1) -> Path:
    """A checkpoint of random weights, whose masks show several classes."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = with_spacing(make_plan(make_stage((8, 8, 8)), num_channels=num_channels), (1.2, 1.0, 0.9))
    save_ours(folder / "last.ckpt", plan)
    return folder / "last.ckpt"


def save_calibrated(folder: Path) -> Path:
    """Two folds of such networks with what a cross-validation says of doubt: that masks like theirs are doubtful."""
    plan = with_spacing(make_plan(make_stage((8, 8, 8))), (1.2, 1.0, 0.9))
    for fold in range(2):
        (folder / f"runs/fold_{fold}").mkdir(parents=True)
        save_ours(folder / f"runs/fold_{fold}/last.ckpt", plan, seed=fold)
    write_json(calibrated(inputs=reference_of([plain_look()], [])), folder / "runs/doubt.json")
    return folder / "runs"


def save_scan(path: Path, shape: Sequence[int] = (12, 10, 14), seed: int = 0) -> Path:
    """A scan whose file lies askew."""
    affine = np.array([[0, -1.1, 0, 5], [1.3, 0, 0, -3], [0, 0, 0.8, 2], [0, 0, 0, 1.0]])
    write_scan(path, np.random.default_rng(seed).uniform(1, 9, shape).astype(np.float32), affine)
    return path


def form(files: Sequence[bytes], names: Sequence[str] = (), field_name: str = "scan") -> tuple[bytes, str]:
    """multipart/form-data and its content type."""
    parts = []
    for number, content in enumerate(files):
        name = names[number] if names else "x.nii.gz"
        head = f'--limit\r\nContent-Disposition: form-data; name="{field_name}"; filename="{name}"\r\n\r\n'
        parts += [head.encode(), content, b"\r\n"]
    return b"".join([*parts, b"--limit--\r\n"]), "multipart/form-data; boundary=limit"


@dataclass
class Client:
    """Asks a running service."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, path: str, data: Any = None, **headers: str) -> tuple[int, bytes, Message]:
        """Status, body and headers of an answer."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, {**self.headers, **named})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), error.headers

    def predict(
        self, *files: bytes, answer: str = "mask", names: Sequence[str] = (), format: str = ""
    ) -> tuple[int, bytes, Message]:
        """Send a scan."""
        body, kind = form(files, names)
        wanted = format and f"&format={format}"
        return self.ask(f"api/predict?answer={answer}{wanted}", body, Content_Type=kind)

    def error(self, *files: bytes, **options: Any) -> tuple[int, str]:
        """Status and message of a scan that gets no mask."""
        status, body, _ = self.predict(*files, **options)
        return status, json.loads(body)["error"]


@contextlib.contextmanager
def running(
    predictor: Predictor, token: str | None = None, dicom_channels: Sequence[str] = (),
    segment_codes: Path | None = None, **limits: Any,
) -> Iterator[Client]:  # fmt: skip
    """A service on a free port of this machine."""
    from serving.server import address, make_server
    from serving.worker import Dicom

    dicom = Dicom(channels=tuple(dicom_channels), segment_codes=segment_codes)
    server = make_server([predictor], Limits(**limits), token, dicom)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield Client(address(listening), {} if token is None else {"Authorization": f"Bearer {token}"})
    finally:
        server.should_exit = True
        thread.join(60)
        server.worker.close()
        listening.close()
        assert not thread.is_alive()
