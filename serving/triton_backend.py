"""The work of a model in Triton's Python backend: scans in, masks out, the same as inference.py's.

Arrays are handed over by DLPack: the backend is built for numpy 1, and arrays of numpy 2 come out empty without an
error. Shapes: N scans of one request, C channels, S A R (superior, anterior, right).
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as backend  # Triton's own; nothing that could be installed.

from inference.mask_formats import ENDINGS
from inference.model_set import load_model_or_set
from inference.predictor import Predictor
from inference.run import NetworkUse, network_maker
from serving.answers import make_record, segments, write_answer_mask
from serving.limits import Limits
from serving.predicting import ScanPredictor
from serving.refusals import Refused
from serving.scratch import Folder, Scratch
from serving.triton_repository import FORMAT, MODEL_ZIP
from serving.uploads import (
    NAME,
    START_BYTES,
    Opening,
    check_upload,
    file_name,
    in_clients_words,
    open_array,
    open_upload,
    wanted_ending,
)
from utils.errors import UserError
from utils.json_text import parse_json
from utils.nifti import Volume

One = tuple[np.ndarray, dict[str, Any]]
"""Mask (S, A, R) and record of a scan."""


class TritonPythonModel:
    """What Triton calls; the names are its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model for the device of this instance."""
        path = Path(args["model_repository"]) / args["model_version"] / MODEL_ZIP
        on_gpu = args["model_instance_kind"] == "GPU"
        device = torch.device(f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu")
        use = NetworkUse(
            batch_size=None, gpus=int(device.index or 0) + 1 if on_gpu else 0, amp=False, compile=False, tta=None,
            overlap=None, blend="gaussian",
        )  # fmt: skip
        _, make = network_maker(path, use)
        model = load_model_or_set(path)
        networks = [make(configuration, device) for configuration in model.configurations]
        self.limits, self.scratch = Limits(), Scratch()
        self.scans = ScanPredictor(Predictor(networks, model.post_processing, model.merge))
        for text in self.scans.warnings:
            print(f"warning: {text}", file=sys.stderr)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request; a fault in one is its own."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            return backend.InferenceResponse(output_tensors=self._outputs(request))
        except (UserError, Refused) as error:
            return _fault(str(error))
        except Exception as error:
            traceback.print_exception(error, file=sys.stderr)
            return _fault(f"the scan could not be predicted ({type(error).__name__}); the server's log has more")

    def _outputs(self, request: Any) -> list[Any]:
        image, spacing, scan = (_input(request, name) for name in ("IMAGE", "SPACING_MM", "SCAN"))
        if (image is None) == (scan is None) or (image is None) != (spacing is None):
            raise UserError("send IMAGE and SPACING_MM, or SCAN")
        wanted = _wanted_format(request)
        if scan is not None:
            if len(scan) != 1:
                raise UserError(f"a request holds one SCAN, got {len(scan)}")
            one, content = self._predict_file(scan[0], wanted)
            return [*_outputs_of([one]), _output("MASK_FILE", np.frombuffer(bytearray(content), np.uint8)[None])]
        assert image is not None and spacing is not None, "checked above"
        if wanted is not None:
            raise UserError(f"the parameter {FORMAT} goes with SCAN: arrays have no file")
        return _outputs_of([self._predict_array(*each) for each in zip(image, spacing, strict=True)])

    def _predict_array(self, image: np.ndarray, spacing_mm: np.ndarray) -> One:
        volume = open_array(image, spacing_mm.tolist(), self.scans.predictor, self.limits)
        with self.scratch.folder() as folder:
            return self._predict(volume, "the image", folder, ())

    def _predict_file(self, content: np.ndarray, wanted: str | None) -> tuple[One, bytes]:
        """Mask and record, and the content of the mask's file."""
        predictor = self.scans.predictor
        with self.scratch.folder() as folder:
            file = folder.path / file_name(1, content[:START_BYTES].tobytes())
            folder.need(2 * content.nbytes)
            file.write_bytes(content.tobytes())
            try:
                opening = Opening(num_channels=len(predictor.plan.channels), limits=self.limits)
                scan = open_upload([file], folder, opening)
                ending = wanted_ending(scan, wanted)
                check_upload(scan, predictor, self.limits)
                volume = scan.read()
                one = self._predict(volume, NAME, folder, scan.remarks)
                return one, write_answer_mask(folder.path / f"mask{ending}", one[0], volume, scan, segments(predictor))
            except UserError as error:
                raise UserError(in_clients_words(str(error), [file])) from None

    def _predict(self, volume: Volume, name: str, folder: Folder, remarks: Sequence[str]) -> One:
        start_s = time.monotonic()
        predicted = self.scans.predict(volume, name, folder.path, folder.need)
        seconds = {"predicted": time.monotonic() - start_s}
        return predicted.mask, make_record(predicted, volume, self.scans.predictor, seconds, remarks)


def _wanted_format(request: Any) -> str | None:
    """The format of MASK_FILE that a client asks for."""
    wanted = parse_json(request.parameters() or "{}").get(FORMAT)
    if wanted not in (None, *ENDINGS):
        raise UserError(f"there is no format {wanted!r:.50}; there are {', '.join(ENDINGS)}")
    return wanted


def _outputs_of(each: Sequence[One]) -> list[Any]:
    """What is said of N scans; the shorter ones of their records are filled up with blanks, which JSON allows."""
    texts = [json.dumps(record).encode() for _, record in each]
    longest = max(map(len, texts))
    records = np.stack([np.frombuffer(bytearray(text.ljust(longest)), np.uint8) for text in texts])
    doubts = np.array([[record["doubt"]["score"]] for _, record in each], np.float32)
    return [
        _output("MASK", np.stack([mask for mask, _ in each])), _output("DOUBT", doubts), _output("RECORD", records)
    ]  # fmt: skip


def _input(request: Any, name: str) -> np.ndarray | None:
    tensor = backend.get_input_tensor_by_name(request, name)
    return None if tensor is None else torch.from_dlpack(tensor.to_dlpack()).cpu().numpy()


def _output(name: str, array: np.ndarray) -> Any:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return backend.Tensor.from_dlpack(name, torch.utils.dlpack.to_dlpack(tensor))


def _fault(message: str) -> Any:
    return backend.InferenceResponse(output_tensors=[], error=backend.TritonError(message))
