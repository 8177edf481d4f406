"""ONNX files as networks that compute outside of torch, on the CPU: windows (N, C, ...) in, logits (N, K, ...) out."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference.engines.conversion import INPUT
from utils.extras import optional_import

_CORE_LOCK = threading.Lock()


class OnnxRuntimeNetwork(nn.Module):
    """A network that ONNX Runtime computes in float32."""

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__()
        runtime = optional_import("onnxruntime", extra="onnx", purpose="--engine onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Threads that wait would turn in circles, and take a core each from whoever prepares the next scan.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.eval()

    def forward(self, windows: Tensor) -> Tensor:
        """Logits of windows."""
        [logits] = self._session.run(None, {INPUT: windows.contiguous().numpy()})
        return torch.from_numpy(logits)


class OpenVinoNetwork(nn.Module):
    """A network that OpenVINO computes, in float32 unless bf16 is asked for."""

    def __init__(self, path: Path, threads: int, *, bf16: bool = False) -> None:
        super().__init__()
        settings = {
            # Without it a CPU that has bf16 computes in it, whether asked to or not.
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
            # Which cores this process may use is not OpenVINO's to decide.
            "ENABLE_CPU_PINNING": False,
        }  # fmt: skip
        # One at a time, so that threads that load their first model together do not make two.
        with _CORE_LOCK:
            core = _openvino_core()
        self._compiled = core.compile_model(str(path), "CPU", settings)
        self.eval()

    def forward(self, windows: Tensor) -> Tensor:
        """Logits of windows."""
        # A copy of the result: the next call writes where it lies.
        found = self._compiled([windows.contiguous().numpy()], share_inputs=True, share_outputs=False)
        return torch.from_numpy(found[0])


@functools.cache
def _openvino_core() -> Any:
    """OpenVINO in this process; it stays until the process ends.

    Each core's plugin for CPUs lays a stack for signals (sigaltstack) and puts the one before it back at its end. Where
    that was another core's, which had gone before, the next Ctrl-C would be a segmentation fault (seen in 2026.4.1).
    """
    return optional_import("openvino", extra="openvino", purpose="--engine openvino").Core()
