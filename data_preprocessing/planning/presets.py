"""The ten tasks of the Medical Segmentation Decathlon: where to get them, and the grids that they are trained on.

Sources: patch sizes, spacings and CT statistics are those of the NVIDIA reference (its data_preprocessing/configs.py),
addresses and MD5 sums those of the public archives. Patches and spacings are in D, H, W (2D: H, W) order.
"""

from __future__ import annotations

import dataclasses

ARCHIVES = "https://msd-for-monai.s3-us-west-2.amazonaws.com"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CtStatistics:
    """Hounsfield units of a task's foreground: where to clip (0.5 and 99.5 percentile), mean, standard deviation."""

    lower: float
    upper: float
    mean: float
    std: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class MsdTask:
    """One task: its archive, and the numbers that its networks are built on."""

    folder: str
    md5: str
    """Of the archive."""
    patch_size_3d: tuple[int, int, int]
    spacing_mm_3d: tuple[float, float, float]
    patch_size_2d: tuple[int, int]
    spacing_mm_2d: tuple[float, float]
    ct: CtStatistics | None = None
    """None for MRI, which is normalised case by case."""
    archives: str = ARCHIVES
    """Address of the folder that the archive lies in."""

    @property
    def url(self) -> str:
        """Address of the archive."""
        return f"{self.archives}/{self.folder}.tar"


def _ct(lower: float, upper: float, mean: float, std: float) -> CtStatistics:
    return CtStatistics(lower=float(lower), upper=float(upper), mean=mean, std=std)


MSD_TASKS: dict[str, MsdTask] = {
    "01": MsdTask(
        folder="Task01_BrainTumour", md5="240a19d752f0d9e9101544901065d872",
        patch_size_3d=(128, 128, 128), spacing_mm_3d=(1.0, 1.0, 1.0),
        patch_size_2d=(192, 160), spacing_mm_2d=(1.0, 1.0),
    ),
    "02": MsdTask(
        folder="Task02_Heart", md5="06ee59366e1e5124267b774dbd654057",
        patch_size_3d=(80, 192, 160), spacing_mm_3d=(1.37, 1.25, 1.25),
        patch_size_2d=(320, 256), spacing_mm_2d=(1.25, 1.25),
    ),
    "03": MsdTask(
        folder="Task03_Liver", md5="a90ec6c4aa7f6a3d087205e23d4e6397",
        patch_size_3d=(128, 128, 128), spacing_mm_3d=(1.0, 0.7676, 0.7676),
        patch_size_2d=(512, 512), spacing_mm_2d=(0.7676, 0.7676), ct=_ct(-17, 201, 99.4, 39.36),
    ),
    "04": MsdTask(
        folder="Task04_Hippocampus", md5="9d24dba78a72977dbd1d2e110310f31b",
        patch_size_3d=(40, 56, 40), spacing_mm_3d=(1.0, 1.0, 1.0),
        patch_size_2d=(56, 40), spacing_mm_2d=(1.0, 1.0),
    ),
    "05": MsdTask(
        folder="Task05_Prostate", md5="35138f08b1efaef89d7424d2bcc928db",
        patch_size_3d=(20, 320, 256), spacing_mm_3d=(3.6, 0.62, 0.62),
        patch_size_2d=(320, 320), spacing_mm_2d=(0.62, 0.62),
    ),
    "06": MsdTask(
        folder="Task06_Lung", md5="8afd997733c7fc0432f71255ba4e52dc",
        patch_size_3d=(80, 192, 160), spacing_mm_3d=(1.24, 0.79, 0.79),
        patch_size_2d=(512, 512), spacing_mm_2d=(0.79, 0.79), ct=_ct(-1024, 325, -158.58, 324.7),
    ),
    "07": MsdTask(
        folder="Task07_Pancreas", md5="4f7080cfca169fa8066d17ce6eb061e4",
        patch_size_3d=(40, 224, 224), spacing_mm_3d=(2.5, 0.8, 0.8),
        patch_size_2d=(512, 512), spacing_mm_2d=(0.8, 0.8), ct=_ct(-96, 215, 77.9, 75.4),
    ),
    "08": MsdTask(
        folder="Task08_HepaticVessel", md5="641d79e80ec66453921d997fbf12a29c",
        patch_size_3d=(64, 192, 192), spacing_mm_3d=(1.5, 0.8, 0.8),
        patch_size_2d=(512, 512), spacing_mm_2d=(0.8, 0.8), ct=_ct(-3, 243, 104.37, 52.62),
    ),
    "09": MsdTask(
        folder="Task09_Spleen", md5="410d4a301da4e5b2f6f86ec3ddba524e",
        patch_size_3d=(64, 192, 160), spacing_mm_3d=(1.6, 0.79, 0.79),
        patch_size_2d=(512, 512), spacing_mm_2d=(0.79, 0.79), ct=_ct(-41, 176, 99.29, 39.47),
    ),
    "10": MsdTask(
        folder="Task10_Colon", md5="bad7a188931dc2f6acf72b08eb6202d0",
        patch_size_3d=(56, 192, 160), spacing_mm_3d=(3.0, 0.78, 0.78),
        patch_size_2d=(512, 512), spacing_mm_2d=(0.78, 0.78), ct=_ct(-30, 165.82, 62.18, 32.65),
    ),
}  # fmt: skip
