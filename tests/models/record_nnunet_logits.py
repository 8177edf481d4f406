"""Run nnU-Net v2's own networks and write nnunet_logits.json, which the tests compare with.

pip install nnunetv2==2.8.1 dynamic-network-architectures==0.4.4
PYTHONPATH=. python tests/models/record_nnunet_logits.py
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import torch

from tests.models.nnunet_networks import NETWORKS, Network, digest_parameters, make_image, make_weight

RECORD = Path(__file__).with_name("nnunet_logits.json")
COUNT = 12
"""Logits that are kept of each output, at equal distances."""


def build(network: Network) -> torch.nn.Module:
    """nnU-Net's network, as its planner describes it, with the made-up weights."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    dim = len(network.patch)
    kind = ResidualEncoderUNet if network.residual else PlainConvUNet
    encoder = "n_blocks_per_stage" if network.residual else "n_conv_per_stage"
    theirs = kind(
        input_channels=network.in_channels,
        n_stages=len(network.filters),
        features_per_stage=network.filters,
        conv_op={2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dim],
        kernel_sizes=network.kernels,
        strides=network.strides,
        num_classes=network.num_outputs,
        # Theirs come deepest first.
        n_conv_per_stage_decoder=network.decoder_convs[::-1],
        conv_bias=True,
        norm_op={2: torch.nn.InstanceNorm2d, 3: torch.nn.InstanceNorm3d}[dim],
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **{encoder: network.encoder_convs},
    )
    weights = {name: torch.from_numpy(make_weight(name, tuple(value.shape))) for name, value in parameters(theirs)}
    theirs.load_state_dict(weights, strict=False)
    return theirs


def parameters(network: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters by the name that each has first, without the second names of the same tensors."""
    return [(name, value) for name, value in network.named_parameters() if "all_modules" not in name]


def record(network: Network) -> dict[str, object]:
    """A digest of the parameters, and some logits of each output, full resolution first."""
    theirs = build(network)
    with torch.no_grad():
        outputs = theirs(torch.from_numpy(make_image(network)))
    return {
        "parameters": digest_parameters((name, tuple(value.shape)) for name, value in parameters(theirs)),
        "outputs": [
            {
                "shape": list(output.shape),
                "largest": float(output.abs().max()),
                "logits": [round(float(x), 7) for x in output.flatten()[:: output.numel() // COUNT][:COUNT]],
            }
            for output in outputs
        ],
    }


def main() -> None:
    """Write the file."""
    versions = {name: importlib.metadata.version(name) for name in ("dynamic-network-architectures", "torch")}
    found = {name: record(network) for name, network in NETWORKS.items()}
    RECORD.write_text(json.dumps({"versions": versions, "networks": found}) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
