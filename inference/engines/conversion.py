"""A trained network in other forms: ONNX, torch's exported program, and code that AOTInductor compiled.

All take windows (N, C, D, H, W), or (N, C, H, W) in 2D, of the plan's patch size and any N, and give logits
(N, K, ...): float32 in and out. No form says where the source files lay on the machine that wrote it.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from utils.errors import UserError
from utils.extras import optional_import
from utils.schema import Plan

OPSET = 20
"""Of ONNX; newer ones have nothing that these networks need, and fewer programs read them."""
INPUT, OUTPUT = "image", "logits"
MOST_INLINE_BYTES = 2_000_000_000
"""Weights above it lie in a file beside an ONNX file, whose format ends at 2 GiB."""
EXAMPLE_WINDOWS = 2
"""With a single window torch would take the number for a constant."""


def input_shape(plan: Plan) -> tuple[int, ...]:
    """Shape of one window without N: (C, D, H, W), or (C, H, W)."""
    return plan.in_channels, *plan.stage.patch_size


def random_windows(plan: Plan, count: int, seed: int = 0) -> Tensor:
    """Windows of the size and about the intensities of the plan's, as example and for checks."""
    return torch.randn(count, *input_shape(plan), generator=torch.Generator().manual_seed(seed))


def trace_network(network: nn.Module, plan: Plan) -> ExportedProgram:
    """The network as a graph of torch's operators for any number of windows.

    Args:
        network: on the CPU, in evaluation mode, without operators of our own (`models.unet.PLAIN`).
        plan: its plan.
    """
    assert not network.training, "call network.eval() first"
    with torch.no_grad(), _quiet():
        program = torch.export.export(
            network, (random_windows(plan, EXAMPLE_WINDOWS),), dynamic_shapes=({0: Dim("windows", min=1)},)
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def write_onnx(path: Path, network: nn.Module, plan: Plan) -> None:
    """Write the network as an ONNX file that passes ONNX's own checker.

    Raises:
        UserError: a package is missing.
    """
    checker = optional_import("onnx.checker", extra="onnx", purpose="ONNX")
    optional_import("onnxscript", extra="onnx", purpose="ONNX")
    weight_bytes = sum(4 * parameter.numel() for parameter in network.parameters())
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            trace_network(network, plan), dynamo=True, opset_version=OPSET, input_names=[INPUT],
            output_names=[OUTPUT], verbose=False,
        )  # fmt: skip
    assert program is not None, "torch.onnx.export gives nothing only where it writes the file itself"
    for node in program.model.graph:
        node.metadata_props.clear()
    program.save(path, external_data=weight_bytes > MOST_INLINE_BYTES)
    checker.check_model(path, full_check=True)


def write_program(path: Path, network: nn.Module, plan: Plan) -> None:
    """Write torch's exported program, a zip of JSON and raw numbers; its example would be pickled and is left out."""
    program = trace_network(network, plan)
    program.example_inputs = None
    torch.export.save(program, path)


def write_compiled(path: Path, network: nn.Module, plan: Plan) -> None:
    """Write a package of native code for this kind of CPU and this version of torch; it takes a C++ compiler.

    Raises:
        UserError: the compiler fails.
    """
    # A second's work that nothing else needs.
    from torch._inductor import exc

    program = trace_network(network, plan)
    try:
        with torch.no_grad(), _quiet():
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except (exc.InductorError, exc.CppCompileError, exc.InvalidCxxCompiler) as error:
        cause = error.inner_exception if isinstance(error, exc.InductorError) else error
        if not isinstance(cause, (exc.CppCompileError, exc.InvalidCxxCompiler)):
            raise
        lines = [line.strip() for line in getattr(cause, "output", str(cause)).splitlines() if line.strip()]
        said = next((line for line in lines if "error" in line), lines[-1] if lines else "it says nothing")
        raise UserError(f"the C++ compiler fails: {said}; set CXX to a g++ or clang++ that has OpenMP") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of its own parts: old ways of asking, and operators of torchvision that nobody uses."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
            warnings.filterwarnings("ignore", ".*torch.jit.script_method.*", DeprecationWarning)
            yield
    finally:
        exporter.setLevel(level)
