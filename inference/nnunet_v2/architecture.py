"""The network of an nnU-Net v2 configuration, in its newer and its older way to say so, as levels of a `StagePlan`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from utils.errors import UserError
from utils.stage_plan import DEFAULT_CONVOLUTIONS, Axes

PLAIN, RESIDUAL = "PlainConvUNet", "ResidualEncoderUNet"
PACKAGE = "dynamic_network_architectures.architectures"
SLOPE = 0.01
MOST_LEVELS, MOST_CONVOLUTIONS = 16, 100
"""A network is built before its weights are compared with it, so numbers are not believed without limit."""
EPSILON = 1e-5
_IDLE = {
    "n_stages", "conv_op", "conv_bias", "dropout_op", "dropout_op_kwargs", "deep_supervision", "stochastic_depth_p",
    "squeeze_excitation_reduction_ratio", "nonlin_first", "norm_op", "norm_op_kwargs", "nonlin", "nonlin_kwargs",
    "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage",
    "n_conv_per_stage_decoder", "input_channels", "num_classes",
}  # fmt: skip
"""Settings that are read here, or that make no difference once a network is trained."""
_ONLY: dict[str, tuple[Any, ...]] = {
    "nonlin_first": (False,), "squeeze_excitation": (False,), "bottleneck_channels": (None,),
    "disable_default_stem": (False,), "pool_type": ("conv",), "pool": ("conv",), "stem_channels": (None,),
}  # fmt: skip
"""Settings with a single value that has an equivalent here, which is also their default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Levels of a U-Net, the finest first, in the terms of `StagePlan`."""

    block: str
    filters: tuple[int, ...]
    kernels: tuple[Axes, ...]
    strides: tuple[Axes, ...]
    encoder_convs: tuple[int, ...]
    decoder_convs: tuple[int, ...]
    """Level 0 first."""
    negative_slope: float

    def stage_fields(self) -> dict[str, Any]:
        """Fields of a `StagePlan`; what is its default is left out."""
        fields: dict[str, Any] = {"filters": self.filters, "kernels": self.kernels, "strides": self.strides}
        if self.block != "plain":
            fields["block"] = self.block
        if self.kernels[:-1] != self.kernels[1:]:
            # A step of this decoder convolves as its own level does.
            fields["decoder_kernels"] = self.kernels[:-1]
        for name, convs in (("encoder_convs", self.encoder_convs), ("decoder_convs", self.decoder_convs)):
            if set(convs) != {DEFAULT_CONVOLUTIONS}:
                fields[name] = convs
        return fields


def read_architecture(configuration: Mapping[str, Any], source: str) -> Architecture:
    """The network of a configuration whose inheritance has been resolved.

    Raises:
        UserError: another network than the two, or one with a setting that has no equivalent here; it is named.
    """
    dim = len(configuration["patch_size"])
    name, settings = _newer(configuration, source) if "architecture" in configuration else _older(configuration, source)
    known, module = (PLAIN, RESIDUAL), name.rpartition(".")[2]
    if module not in known:
        raise UserError(f"{source}: its network is {name}; those that can be read are {' and '.join(known)}")
    _require_equivalents(settings, module, source)
    strides = _axes(settings["strides"], dim)
    num_levels = len(strides)
    blocks = "n_blocks_per_stage" if module == RESIDUAL else "n_conv_per_stage"
    filters = _per_level(settings["features_per_stage"], num_levels)
    decoder = _per_level(settings["n_conv_per_stage_decoder"], num_levels - 1)
    convs = _per_level(settings[blocks], num_levels)
    if num_levels > MOST_LEVELS or not all(0 < count <= MOST_CONVOLUTIONS for count in (*convs, *decoder)):
        raise UserError(f"{source}: its network {name} has {num_levels} levels of {convs} blocks, more than any has")
    slope = (settings.get("nonlin_kwargs") or {}).get("negative_slope", SLOPE)
    return Architecture(
        block="residual" if module == RESIDUAL else "plain", filters=filters, strides=strides,
        kernels=_axes(settings["kernel_sizes"], dim, num_levels),
        encoder_convs=convs, decoder_convs=decoder[::-1],
        negative_slope=float(slope),
    )  # fmt: skip


def _newer(configuration: Mapping[str, Any], source: str) -> tuple[str, Mapping[str, Any]]:
    architecture = configuration["architecture"]
    return str(architecture["network_class_name"]), architecture["arch_kwargs"]


def _older(configuration: Mapping[str, Any], source: str) -> tuple[str, Mapping[str, Any]]:
    """As versions 2.0 to 2.3 wrote it."""
    if "UNet_class_name" not in configuration:
        raise UserError(f"{source}: it says nothing of its network (neither architecture nor UNet_class_name)")
    name, convs = str(configuration["UNet_class_name"]), configuration["n_conv_per_stage_encoder"]
    base, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
    return name, {
        "features_per_stage": [min(base * 2**level, most) for level in range(len(convs))],
        "kernel_sizes": configuration["conv_kernel_sizes"],
        "strides": configuration["pool_op_kernel_sizes"],
        "n_blocks_per_stage" if name == RESIDUAL else "n_conv_per_stage": convs,
        "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
    }


def _require_equivalents(settings: Mapping[str, Any], name: str, source: str) -> None:
    problems = []
    for key, value in settings.items():
        if key == "stem_channels":
            features = settings["features_per_stage"]
            allowed: Sequence[Any] = (None, features if isinstance(features, int) else features[0])
        else:
            allowed = _ONLY.get(key, ())
        if (allowed and value not in allowed) or (not allowed and key not in _IDLE | {"block"}):
            problems.append(f"{key} = {value!r}")
    block, norm = settings.get("block"), str(settings.get("norm_op", "InstanceNorm"))
    if block is not None and not str(block).endswith("BasicBlockD"):
        problems.append(f"block = {block!r}")
    if "InstanceNorm" not in norm:
        problems.append(f"norm_op = {norm!r}")
    norm_kwargs = settings.get("norm_op_kwargs") or {"affine": True}
    if norm_kwargs.get("eps", EPSILON) != EPSILON or norm_kwargs.get("affine") is not True:
        problems.append(f"norm_op_kwargs = {norm_kwargs!r}")
    if not str(settings.get("nonlin", "LeakyReLU")).endswith("LeakyReLU"):
        problems.append(f"nonlin = {settings['nonlin']!r}")
    if problems:
        raise UserError(f"{source}: its network {name} has settings without an equivalent here: {', '.join(problems)}")


def _per_level(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else tuple(int(each) for each in value)


def _axes(values: int | Sequence[int | Sequence[int]], dim: int, count: int = 0) -> tuple[Axes, ...]:
    """A tuple of `dim` numbers for each level; a number stands for all axes, or all levels."""
    levels = [values] * count if isinstance(values, int) else values
    return tuple((level,) * dim if isinstance(level, int) else tuple(int(n) for n in level) for level in levels)
