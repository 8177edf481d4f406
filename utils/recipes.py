"""Named training recipes: values that stand in place of the defaults of several flags at once.

A flag on the command line wins over a --config file, the file over the recipe, the recipe over the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# What the paper and nnU-Net v2 share. A Dice that stands still does not end their trainings (--patience 0), and a
# third of the patches is sure to show foreground; v2 takes the last third of each batch, here each patch is drawn. Both
# take every slice of a 2D batch from a case of its own.
_BOTH = {
    "weight_decay": 3e-5,
    "max_epochs": 1000,
    "batches_per_epoch": 250,
    "patience": 0,
    "oversampling": 0.33,
    "batch_dice": "auto",
    "augment": "nnunet",
    "nvol": 0,
}

RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # The defaults: those of NVIDIA's PyTorch/Segmentation/nnUNet.
        "reference": {},
        # Isensee et al., nnU-Net: Breaking the Spell (2019), section 2.2.
        "paper": _BOTH
        | {
            "optimizer": "adam_l2",
            "learning_rate": 3e-4,
            "scheduler": "loss_plateau",
            "factor": 0.2,
            "lr_patience": 30,
            "min_learning_rate": 1e-6,
            "elastic_probability": 0.2,
        },
        # nnU-Net v2, nnUNetTrainer.
        "nnunet": _BOTH
        | {
            "optimizer": "sgd",
            "learning_rate": 1e-2,
            "momentum": 0.99,
            "scheduler": "poly",
            "gradient_clip_val": 12.0,
            "deep_supervision": True,
            "deep_supr_num": 0,
        },
    }
)
"""Recipe -> field of an option group (utils/config.py) -> value."""
