"""nnU-Net's names of the configurations of a task, in one table."""

from __future__ import annotations

CONFIGURATIONS = {
    "2d": "2d",
    "3d_fullres": "3d",
    "3d_lowres": "3d_lowres",
    "3d_cascade_fullres": "3d_cascade_fullres",
}
"""Configurations by nnU-Net's names, and how the shard folder of each is called after `<task>_`."""
FIRST_STAGE, CASCADE = "3d_lowres", "3d_cascade_fullres"
"""The two stages of a cascade."""
