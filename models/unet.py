"""The U-Net of a plan: a convolutional encoder and decoder whose depth, strides and kernels follow the data.

Shapes: N batch, C channels, K classes or regions, D H W space (2D networks have no D).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.acceleration import Acceleration
from models.blocks import NUM_GROUPS, BasicBlock, Head, Layers, ResidualBlock, UpBlock
from models.kernels.cpu_conv import replace_convolutions
from models.kernels.instance_norm import fuse_norms
from models.residual_encoder import PooledResidualBlock, ResidualLevel, make_stem
from utils.config import ModelConfig
from utils.errors import UserError
from utils.schema import StagePlan
from utils.stage_plan import DEFAULT_CONVOLUTIONS

PLAIN = Acceleration()


class DynamicUNet(nn.Module):
    """U-Net with strided encoder steps and transposed decoder steps; the stage says how levels convolve.

    A plain stage with two convolutions per level has the names and shapes of the parameters of MONAI's DynUNet with
    `trans_bias`, as the NVIDIA reference builds it, so those weights fit; the second set of names there for the same
    tensors, `skip_layers.*`, has no counterpart here. Each deep supervision head predicts at the resolution of its own
    level, and only in training.

    Source: Isensee et al., nnU-Net (2021); Futrega et al., Optimized U-Net for Brain Tumor Segmentation
    (2021).
    """

    def __init__(
        self, stage: StagePlan, *, in_channels: int, num_outputs: int, model: ModelConfig, acceleration: Acceleration
    ) -> None:
        super().__init__()
        dim, filters, kernels, strides = stage.dim, stage.filters, stage.kernels, stage.strides
        layers = Layers(dim=dim, norm=model.norm, negative_slope=model.negative_slope)
        first = in_channels
        self.stem: nn.Module | None = None
        if stage.block == "residual":
            self.stem, first = make_stem(layers, in_channels, filters[0], kernel=kernels[0]), filters[0]
        encoder = _encoder_levels(stage, layers, first, residual=model.res_block)
        self.input_block, self.bottleneck = encoder[0], encoder[-1]
        self.downsamples = nn.ModuleList(encoder[1:-1])
        # Deepest level first; a decoder step undoes a stride with a transposed convolution of that size.
        steps = zip(filters[1:], filters[:-1], stage.step_kernels, strides[1:], stage.step_convs)
        self.upsamples = nn.ModuleList(
            UpBlock(layers, wide, narrow, kernel=kernel, stride=stride, num_convs=num_convs)
            for wide, narrow, kernel, stride, num_convs in reversed(list(steps))
        )
        self.output_block = Head(dim, filters[0], num_outputs)
        num_heads = num_supervised(stage, model)
        if num_heads:
            self.deep_supervision_heads = nn.ModuleList(
                Head(dim, filters[level], num_outputs) for level in range(1, num_heads + 1)
            )
        self.num_outputs, self.num_heads = num_outputs, num_heads
        self.negative_slope = model.negative_slope
        self.apply(self._initialise)
        for module in self.modules():
            if isinstance(module, PooledResidualBlock):
                module.start_as_skip()
        if acceleration.fused_norm:
            fuse_norms(self, model.negative_slope)
        if acceleration.winograd:
            replace_convolutions(self)
        self.memory_format = acceleration.memory_format(dim)
        # torch's stubs leave this argument out.
        self.to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def __call__(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """As `forward`; a compiled network gets maps that all lie alike, and is recorded and run under `no_grad`.

        Compiled code is made for one set of strides, and a window of a volume has the volume's. A CUDA graph that is
        recorded in inference mode could not be used outside of it, and its outputs would be of that mode, too.
        """
        if self._compiled_call_impl is None or torch.compiler.is_compiling():
            return super().__call__(image)
        with torch.inference_mode(False), torch.set_grad_enabled(torch.is_grad_enabled() and self.training):
            return super().__call__(_laid_out(image, self.memory_format))

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits of an image (N, C, D, H, W) whose sides are multiples of the total strides.

        Returns:
            (N, K, D, H, W) in evaluation. With deep supervision in training a tuple: full resolution first,
            then one tensor per head, each at the size of its level.
        """
        image = image.contiguous(memory_format=self.memory_format)
        skips = [self.input_block(image if self.stem is None else self.stem(image))]
        for block in self.downsamples:
            skips.append(block(skips[-1]))
        features = self.bottleneck(skips[-1])
        heads: list[Tensor] = []
        for level, block in zip(range(len(self.upsamples) - 1, -1, -1), self.upsamples):
            features = block(features, skips.pop())
            if self.training and 1 <= level <= self.num_heads:
                heads.append(self.deep_supervision_heads[level - 1](features))
        logits = self.output_block(features)
        return (logits, *reversed(heads)) if heads else logits

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            if module.weight.is_meta:
                # Names and shapes are all that is wanted, and random numbers there import torch's compiler.
                return
            nn.init.kaiming_normal_(module.weight, a=self.negative_slope)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _encoder_levels(stage: StagePlan, layers: Layers, first: int, *, residual: bool) -> list[nn.Module]:
    """The levels of the encoder, which gets `first` channels; `residual` asks for the reference's blocks."""
    inputs = (first, *stage.filters[:-1])
    levels = zip(inputs, stage.filters, stage.kernels, stage.strides, stage.level_convs)
    if residual:
        return [ResidualBlock(layers, *sizes, kernel=kernel, stride=stride) for *sizes, kernel, stride, _ in levels]
    block = ResidualLevel if stage.block == "residual" else BasicBlock
    return [
        block(layers, *sizes, kernel=kernel, stride=stride, num_convs=count) for *sizes, kernel, stride, count in levels
    ]


def build_network(
    stage: StagePlan,
    *,
    in_channels: int,
    num_outputs: int,
    model: ModelConfig,
    acceleration: Acceleration = PLAIN,
) -> DynamicUNet:
    """The network of a stage; `depth`, `min_fmap` and `filters` of `model` have gone into the stage before.

    Raises:
        UserError: more deep supervision heads than levels for them, features that group normalisation cannot split, or
            residual blocks of both kinds.
    """
    if model.res_block and (stage.block != "plain" or set(stage.level_convs) != {DEFAULT_CONVOLUTIONS}):
        raise UserError(
            f"--res_block is for plain levels of {DEFAULT_CONVOLUTIONS} convolutions; stage {stage.name!r} has "
            f"{stage.block} levels of {' '.join(map(str, stage.level_convs))}: leave it out"
        )
    most_heads = len(stage.filters) - 2
    if num_supervised(stage, model) > most_heads:
        levels = f"stage {stage.name!r} has {len(stage.filters)} levels, so {max(most_heads, 0)} can be supervised"
        advice = f"use --deep_supr_num {most_heads}" if most_heads > 0 else "leave out --deep_supervision"
        raise UserError(f"--deep_supr_num {model.deep_supr_num} is too many: {levels}; {advice}")
    if model.norm == "group" and any(f % NUM_GROUPS for f in stage.filters):
        raise UserError(f"--norm group needs filters that are multiples of {NUM_GROUPS}, got {stage.filters}")
    return DynamicUNet(stage, in_channels=in_channels, num_outputs=num_outputs, model=model, acceleration=acceleration)


def _laid_out(image: Tensor, memory_format: torch.memory_format) -> Tensor:
    """A copy with the strides of the order of memory, also along axes of length 1, where torch has a choice."""
    return torch.empty(image.shape, dtype=image.dtype, device=image.device, memory_format=memory_format).copy_(image)


def num_supervised(stage: StagePlan, model: ModelConfig) -> int:
    """Number of decoder levels below full resolution that get a loss of their own.

    Source: nnU-Net v2's trainer, for `deep_supr_num` 0: the coarsest decoder level has no weight.
    """
    if not model.deep_supervision:
        return 0
    return model.deep_supr_num or max(len(stage.filters) - 3, 0)
