"""The work of a model in Triton's Python backend: scans in, masks out, the same as inference.py's.

Arrays are handed over by DLPack: the backend is built for numpy 1, and arrays of numpy 2 come out empty without an
error. Shapes: N scans of one request, C channels, S A R (superior, anterior, right).
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as backend  # Triton's own; nothing that could be installed.

from inference.model_set import load_model_or_set
from inference.predictor import Predictor
from inference.preparing import as_volume, read_scan
from inference.run import NetworkUse, network_maker
from serving.limits import Limits
from serving.refusals import Refused
from serving.triton_repository import MODEL_ZIP
from serving.uploads import check_upload, in_clients_words, nifti_name
from utils.errors import UserError
from utils.nifti import write_mask


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
        self.predictor, self.limits = Predictor(networks, model.post_processing, model.merge), Limits()

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
        if scan is not None:
            if len(scan) != 1:
                raise UserError(f"a request holds one SCAN, got {len(scan)}")
            mask, content = self._predict_file(scan[0])
            file = np.frombuffer(bytearray(content), np.uint8)
            return [_output("MASK", mask[None]), _output("MASK_FILE", file[None])]
        assert image is not None and spacing is not None, "checked above"
        return [_output("MASK", np.stack([self._predict_array(*each) for each in zip(image, spacing, strict=True)]))]

    def _predict_array(self, image: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
        if image[0].size * len(image) > self.limits.voxels:
            raise UserError(f"the image has {image.size} voxels; at most {self.limits.voxels} are taken")
        return self.predictor.predict_volume(as_volume(image, spacing_mm.tolist()), "the image")

    def _predict_file(self, content: np.ndarray) -> tuple[np.ndarray, bytes]:
        """The mask (S, A, R), and the content of its file."""
        with tempfile.TemporaryDirectory(prefix="nnunet-triton-") as folder:
            path = Path(folder) / nifti_name(1, content[:2].tobytes())
            path.write_bytes(content.tobytes())
            check_upload([path], self.predictor, self.limits)
            try:
                volume, _ = read_scan(path)
                mask = self.predictor.predict_volume(volume, "the scan")
            except UserError as error:
                raise UserError(in_clients_words(str(error), [path])) from None
            target = Path(folder) / "mask.nii.gz"
            write_mask(target, mask, volume.geometry)
            return mask, target.read_bytes()


def _input(request: Any, name: str) -> np.ndarray | None:
    tensor = backend.get_input_tensor_by_name(request, name)
    return None if tensor is None else torch.from_dlpack(tensor.to_dlpack()).cpu().numpy()


def _output(name: str, array: np.ndarray) -> Any:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return backend.Tensor.from_dlpack(name, torch.utils.dlpack.to_dlpack(tensor))


def _fault(message: str) -> Any:
    return backend.InferenceResponse(output_tensors=[], error=backend.TritonError(message))
