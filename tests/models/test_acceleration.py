"""Faster ways to the same numbers: who gets which, and that losses, gradients and names stay the plain ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from models import acceleration
from models.acceleration import Acceleration, acceleration_warnings, choose_acceleration
from models.inferer import InferenceSettings
from models.nn_unet import NNUnet
from models.sliding_window import predict_volume
from tests.models.builders import BRATS, TWO_CLASSES, make_plan, make_stage
from utils.config import HardwareConfig, ModelConfig
from utils.optim_config import OptimConfig
from utils.schema import LabelScheme

# torch.compile itself makes an instance of autograd functions, and warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
LAST = Acceleration(channels_last=True)
FUSED = Acceleration(channels_last=True, fused_norm=True)
EVERYTHING = Acceleration(channels_last=True, fused_norm=True, compile_mode="default", backend="aot_eager")
COMPILED = Acceleration(compile_mode="default", backend="aot_eager")


def make_module(chosen: Acceleration, *, dim: int = 3, labels: LabelScheme = TWO_CLASSES, channels: int = 2) -> NNUnet:
    torch.manual_seed(0)
    plan = make_plan(make_stage((8,) * dim), labels=labels, num_channels=channels)
    model = ModelConfig(deep_supervision=True, deep_supr_num=1)
    settings = InferenceSettings(window_batch=2, fill_batches=chosen.compiles)
    return NNUnet(plan=plan, model=model, optim=OptimConfig(), inference=settings, acceleration=chosen).train()


def make_batch(dim: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(2, 2, *(8,) * dim, generator=generator),
        "label": torch.randint(0, 3, (2, 1, *(8,) * dim), generator=generator).to(torch.uint8),
    }


def loss_and_gradients(module: NNUnet, *, amp: bool = False, scale: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    dim = module.plan.stage.dim
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        loss = module.training_step(make_batch(dim), 0)
    torch.amp.GradScaler("cpu", init_scale=scale).scale(loss).backward()
    return loss.detach(), {name: p.grad / scale for name, p in module.network.named_parameters()}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "dim", "labels"),
    [
        (LAST, 3, TWO_CLASSES), (FUSED, 3, TWO_CLASSES), (FUSED, 2, TWO_CLASSES), (FUSED, 3, BRATS),
        (COMPILED, 3, TWO_CLASSES), (EVERYTHING, 2, TWO_CLASSES), (EVERYTHING, 3, BRATS),
    ],
)  # fmt: skip
def test_loss_gradients_and_names_are_those_of_the_plain_path(chosen, dim, labels):
    plain, fast = (make_module(each, dim=dim, labels=labels) for each in (Acceleration(), chosen))
    assert list(fast.state_dict()) == list(plain.state_dict())
    expected, found = loss_and_gradients(plain), loss_and_gradients(fast)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_mixed_precision_and_gradient_scaling_agree_as_far_as_bf16_does():
    plain, fast = make_module(Acceleration()), make_module(EVERYTHING)
    expected, found = (loss_and_gradients(module, amp=True, scale=1024.0) for module in (plain, fast))
    exact = loss_and_gradients(make_module(Acceleration()))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-2, atol=1e-2)
    for name, gradient in exact[1].items():
        size = gradient.norm()
        # As near to float32 as the plain path in bf16 is, give or take the same again.
        error = (found[1][name] - gradient).norm()
        assert error <= 2 * (expected[1][name] - gradient).norm() + 0.02 * size, name


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "labels"), [(3, TWO_CLASSES), (2, TWO_CLASSES), (3, BRATS)])
def test_compiled_step_is_one_graph(dim, labels):
    counter = CompileCounter()
    module = make_module(FUSED, dim=dim, labels=labels)
    step = torch.compile(module._forward_loss, backend=counter, fullgraph=True, dynamic=False)
    for _ in range(2):
        step(**make_batch(dim))
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [COMPILED, EVERYTHING], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [1, 2])
def test_validation_window_by_window_compiles_one_graph(monkeypatch, chosen, channels):
    """A single window is a view of its volume, with the strides of that volume; the first volume is one window."""
    counter = CompileCounter()
    monkeypatch.setattr(Acceleration, "compile_options", lambda self: {"backend": counter, "dynamic": False})
    module = make_module(chosen, channels=channels).eval()
    settings = InferenceSettings(window_batch=1, fill_batches=True)
    for number, size in enumerate([(8, 8, 8), (9, 12, 14), (20, 8, 11), (8, 9, 8), (5, 9, 7)]):
        # As Lightning validates, and as the Python API predicts.
        with torch.inference_mode(number % 2 == 0), torch.no_grad():
            predict_volume(
                torch.randn(1, channels, *size),
                module.network,
                num_outputs=module.plan.labels.num_outputs,
                stage=module.plan.stage,
                settings=settings,
            )
    assert counter.frame_count == 1


@pytest.mark.slow
def test_compiled_networks_run_under_no_grad_and_not_in_inference_mode(monkeypatch):
    """What a CUDA graph records must be of use outside of inference mode, too."""
    seen = []

    def backend(graph, inputs):
        seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled(), inputs[0].is_inference()))
        return graph

    monkeypatch.setattr(Acceleration, "compile_options", lambda self: {"backend": backend, "dynamic": False})
    module = make_module(Acceleration(compile_mode="reduce-overhead")).eval()
    with torch.inference_mode():
        logits = module.network(torch.randn(1, 2, 8, 8, 8))
    assert seen == [(False, False, False)] and not logits.is_inference() and not logits.requires_grad


def test_graph_modes_begin_a_new_step_each_time(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: calls.append(1))
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: None)
    module = make_module(Acceleration(compile_mode="reduce-overhead"))
    for _ in range(2):
        module.training_step(make_batch(), 0)
    assert len(calls) == 2


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_every_convolution_gets_channels_last_weights_and_maps(training):
    module, seen = make_module(FUSED), []

    def check(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(all(t.is_contiguous(memory_format=torch.channels_last_3d) for t in (*inputs, layer.weight)))

    layers = [layer for layer in module.network.modules() if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d)]
    for layer in layers:
        layer.register_forward_hook(check)
    if training:
        module.training_step(make_batch(), 0)
    else:
        module.network.eval()
        predict_volume(
            torch.randn(1, 2, 9, 8, 12),
            module.network,
            num_outputs=module.plan.labels.num_outputs,
            stage=module.plan.stage,
            settings=module.inference,
        )
    assert len(seen) >= len(layers) - 1 and all(seen)


@pytest.mark.slow
def test_prediction_is_that_of_the_plain_path():
    plain, fast = (make_module(each).eval() for each in (Acceleration(), EVERYTHING))
    image = torch.randn(1, 2, 9, 12, 14, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(fast.predict_logits(image), plain.predict_logits(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "place", "expected"),
    [
        # Nothing that no GPU has been measured with is a GPU's default.
        ({}, {}, Acceleration()),
        ({"layout": "NDHWC"}, {}, FUSED),
        ({}, {"on_gpu": False}, FUSED),
        ({}, {"on_gpu": False, "half_precision": False}, dataclasses.replace(FUSED, winograd=True)),
        ({"winograd": "off"}, {"on_gpu": False, "half_precision": False}, FUSED),
        ({"winograd": "on"}, {"on_gpu": False}, FUSED),
        ({"winograd": "on"}, {"half_precision": False}, Acceleration()),
        ({"winograd": "on", "layout": "NCDHW"}, {"on_gpu": False, "half_precision": False}, Acceleration()),
        ({}, {"on_gpu": False, "norm": "group"}, Acceleration()),
        ({}, {"half_precision": False}, Acceleration()),
        ({}, {"norm": "batch"}, Acceleration()),
        ({}, {"on_gpu": False, "norm": "batch"}, LAST),
        ({}, {"norm": "group"}, Acceleration()),
        ({"fused_norm": "off"}, {}, Acceleration()),
        ({"layout": "NDHWC"}, {"half_precision": False}, FUSED),
        ({"layout": "NDHWC"}, {"on_gpu": False}, FUSED),
        ({"layout": "NCDHW"}, {"on_gpu": False}, Acceleration()),
        ({"layout": "NDHWC", "fused_norm": "off"}, {}, LAST),
        ({"layout": "NCDHW"}, {}, Acceleration()),
        ({"compile": True}, {"on_gpu": False}, Acceleration(compile_mode="default")),
        ({"layout": "NDHWC", "compile": True, "compile_mode": "reduce-overhead"}, {},
         dataclasses.replace(FUSED, compile_mode="reduce-overhead")),
    ],
)  # fmt: skip
def test_choice_by_flags_and_device(monkeypatch, flags, place, expected):
    monkeypatch.setattr(acceleration, "has_triton", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    place = {"on_gpu": True, "half_precision": True, "norm": "instance", **place}
    assert choose_acceleration(HardwareConfig(**flags), **place) == expected


@pytest.mark.parametrize(("flag", "expected"), [("auto", False), ("on", True), ("off", False)])
def test_wider_vector_units_get_fewer_multiplications_only_when_asked(monkeypatch, flag, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(acceleration, "cpu_family", lambda: ("GenuineIntel", 6))
    hardware = HardwareConfig(winograd=flag)
    assert choose_acceleration(hardware, on_gpu=False, half_precision=False, norm="instance").winograd == expected


@pytest.mark.parametrize(
    ("capability", "family", "expected"),
    [
        ("AVX2", None, True), ("AVX512", ("AuthenticAMD", 25), True), ("AVX512", ("AuthenticAMD", 26), False),
        ("AVX512", ("GenuineIntel", 25), False), ("AVX512", None, False), ("DEFAULT", ("AuthenticAMD", 25), False),
    ],
)  # fmt: skip
def test_fewer_multiplications_are_for_the_cpus_that_gain_by_them(monkeypatch, capability, family, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(acceleration, "cpu_family", lambda: family)
    assert acceleration.saves_by_winograd() == expected


def test_without_triton_a_gpu_keeps_the_plain_path(monkeypatch):
    monkeypatch.setattr(acceleration, "has_triton", lambda: False)
    chosen = choose_acceleration(HardwareConfig(), on_gpu=True, half_precision=True, norm="instance")
    assert chosen == Acceleration()


@pytest.mark.parametrize(
    ("flags", "on_gpu", "norm", "chosen", "words"),
    [
        ({"compile": True, "compile_mode": "reduce-overhead"}, False, "instance", COMPILED, "CUDA graphs"),
        ({"layout": "NDHWC", "fused_norm": "off"}, False, "instance", LAST, "copies every feature map"),
        ({"layout": "NDHWC"}, True, "group", LAST, "copies every feature map"),
        ({"winograd": "on"}, True, "instance", FUSED, "--winograd on has no effect"),
    ],
)  # fmt: skip
def test_flags_that_do_no_good_here_are_named(flags, on_gpu, norm, chosen, words):
    (message,) = acceleration_warnings(HardwareConfig(**flags), chosen, on_gpu=on_gpu, norm=norm)
    assert words in message


def test_defaults_warn_of_nothing():
    for on_gpu in (True, False):
        assert acceleration_warnings(HardwareConfig(), Acceleration(), on_gpu=on_gpu, norm="instance") == []
