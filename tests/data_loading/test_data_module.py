from __future__ import annotations

import ast
import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from data_loading import data_module
from data_loading import sampling as order
from data_loading.augment.presets import choose_preset
from data_loading.data_module import DataModule, batch_spec
from tests.data_loading.shards import constant_cases, make_module, make_plan, write_case
from utils.config import LoaderConfig
from utils.errors import UserError

# Lightning 2.6 asks torch 2.13 for a class that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

PATCH = (4, 4, 4)
NAMES = tuple(f"case{n}" for n in range(5))


class Recorder(pl.LightningModule):
    """Keeps what it is given; learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: dict[int, list[torch.Tensor]] = {}
        self.cases: list[str] = []

    def training_step(self, batch: dict, index: int) -> torch.Tensor:
        self.batches.setdefault(self.current_epoch, []).append(batch["image"].clone())
        return self.weight * 1

    def validation_step(self, batch: dict, index: int) -> None:
        self.cases.append(batch["case"])

    def predict_step(self, batch: dict, index: int) -> str:
        return batch["case"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(max_epochs: int) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=max_epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


@pytest.fixture
def module(tmp_path) -> DataModule:
    constant_cases(tmp_path, 5, (6, 6, 6))
    return make_module(tmp_path, PATCH, train=NAMES, val=NAMES[:2], predict=NAMES[3:])


@pytest.mark.slow
def test_lightning_sees_each_epoch_as_its_number_says(module) -> None:
    recorder = Recorder()
    trainer(3).fit(recorder, module)
    assert sorted(recorder.batches) == [0, 1, 2]
    for epoch, batches in recorder.batches.items():
        module.trainer = SimpleNamespace(global_rank=0, world_size=1, current_epoch=epoch, max_epochs=3)
        assert all(torch.equal(a, b["image"]) for a, b in zip(batches, module.train_dataloader(), strict=True))
    assert recorder.cases[-2:] == ["case0", "case1"]


@pytest.mark.slow
def test_resumed_training_continues_with_the_same_batches(module, tmp_path) -> None:
    whole, first, second = Recorder(), Recorder(), Recorder()
    trainer(4).fit(whole, module)
    halted = trainer(2)
    halted.fit(first, module)
    halted.save_checkpoint(tmp_path / "last.ckpt")
    trainer(4).fit(second, module, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    resumed = first.batches | second.batches
    assert sorted(second.batches) == [2, 3]
    assert all(
        torch.equal(a, b) for epoch in range(4) for a, b in zip(whole.batches[epoch], resumed[epoch], strict=True)
    )


@pytest.mark.slow
def test_prediction_names_its_cases(module) -> None:
    assert trainer(1).predict(Recorder(), module) == ["case3", "case4"]


@pytest.mark.slow
def test_loaders_work_without_a_trainer(module) -> None:
    assert [len(batch["image"]) for batch in module.train_dataloader()] == [2, 2, 1]
    assert [set(item) for item in module.val_dataloader()] == [{"image", "label", "case"}] * 2
    assert [set(item) for item in module.predict_dataloader()] == [{"image", "case"}] * 2


def test_batch_size_comes_from_the_flag_before_the_plan() -> None:
    assert batch_spec(make_plan(PATCH, batch_size=7), LoaderConfig()).batch_size == 7
    assert batch_spec(make_plan(PATCH, batch_size=7), LoaderConfig(batch_size=3)).cases_per_batch == 3


def test_slices_are_shared_out_over_nvol_volumes() -> None:
    spec = batch_spec(make_plan((4, 4)), LoaderConfig(batch_size=12, nvol=3))
    assert (spec.cases_per_batch, spec.patches_per_case) == (3, 4)


def test_single_slice_images_fill_the_batch() -> None:
    spec = batch_spec(make_plan((4, 4)), LoaderConfig(batch_size=5, nvol=2, data2d_dim=2))
    assert (spec.cases_per_batch, spec.patches_per_case) == (5, 1)


def test_nvol_0_takes_each_slice_from_a_case_of_its_own() -> None:
    spec = batch_spec(make_plan((4, 4)), LoaderConfig(batch_size=5, nvol=0))
    assert (spec.cases_per_batch, spec.patches_per_case) == (5, 1)


@pytest.mark.parametrize("batch_size, nvol", [(2, 4), (9, 2)])
def test_batch_that_nvol_does_not_divide_is_refused(batch_size, nvol) -> None:
    with pytest.raises(UserError, match=f"--batch_size {batch_size}.*--nvol {nvol}"):
        batch_spec(make_plan((4, 4)), LoaderConfig(batch_size=batch_size, nvol=nvol))


def test_missing_shards_are_all_listed(tmp_path) -> None:
    constant_cases(tmp_path, 2)
    (tmp_path / "case1_fg.npy").unlink()
    (tmp_path / "case0_y.npy").unlink()
    with pytest.raises(UserError) as error:
        make_module(tmp_path, PATCH, train=("case0", "case1"), predict=("absent",))
    for words in ("case0_y.npy is missing", "case1_fg.npy is missing", "absent_x.npy is missing", "preprocess.py"):
        assert words in str(error.value)


def test_prediction_needs_images_only(tmp_path) -> None:
    constant_cases(tmp_path, 1)
    (tmp_path / "case0_y.npy").unlink()
    (tmp_path / "case0_fg.npy").unlink()
    [item] = make_module(tmp_path, PATCH, predict=("case0",)).predict_dataloader()
    assert item["case"] == "case0"


def test_shards_that_do_not_fit_the_plan_are_refused(tmp_path) -> None:
    constant_cases(tmp_path, 3)
    np.save(tmp_path / "case0_x.npy", np.zeros((1, 4, 4, 4)))
    np.save(tmp_path / "case1_y.npy", np.zeros((1, 4, 4, 3), np.uint8))
    (tmp_path / "case2_x.npy").write_bytes((tmp_path / "case2_x.npy").read_bytes()[:-8])
    with pytest.raises(UserError) as error:
        make_module(tmp_path, PATCH, train=NAMES[:3])
    for words in (
        "case0_x.npy is float64",
        "the files of case1 differ in shape: case1_x.npy",
        "case2_x.npy is damaged",
    ):
        assert words in str(error.value)


def test_channels_other_than_the_plan_are_refused(tmp_path) -> None:
    write_case(tmp_path, "a", np.zeros((3, 4, 4, 4)))
    with pytest.raises(UserError, match=r"needed is float32 \(2, any, any, any\)"):
        make_module(tmp_path, PATCH, train=("a",), channels=2)


def test_volume_is_no_single_slice_image(tmp_path) -> None:
    constant_cases(tmp_path, 1)
    with pytest.raises(UserError, match="--data2d_dim 2"):
        make_module(tmp_path, (4, 4), train=("case0",), loader=LoaderConfig(data2d_dim=2))


@pytest.mark.parametrize("augment, elastic", [("reference", 0.0), ("nnunet", 0.2), ("none", 0.2)])
def test_flags_choose_the_augmentation(tmp_path, augment, elastic) -> None:
    constant_cases(tmp_path, 1)
    loader = LoaderConfig(augment=augment, elastic_probability=elastic, oversampling=0.3)
    preset = make_module(tmp_path, PATCH, train=("case0",), loader=loader).train_dataloader().preset
    assert preset == choose_preset(augment, PATCH, foreground=0.3, elastic_probability=elastic)


@pytest.mark.parametrize("axes", [None, (), (1,)])
def test_the_plan_says_which_axes_are_flipped(tmp_path, axes) -> None:
    constant_cases(tmp_path, 1)
    module = make_module(tmp_path, PATCH, train=("case0",), mirror_axes=axes)
    assert module.train_dataloader().preset.flip_axes == axes


def test_no_case_is_an_error_of_that_loader_only(tmp_path) -> None:
    constant_cases(tmp_path, 1)
    module = make_module(tmp_path, PATCH, train=("case0",))
    assert len(module.train_dataloader()) == 1
    with pytest.raises(UserError, match="no case for validation"):
        module.val_dataloader()


@pytest.mark.parametrize("per_epoch", [1, 4])
def test_epoch_has_as_many_full_batches_as_asked(tmp_path, per_epoch) -> None:
    constant_cases(tmp_path, 5)
    loader = LoaderConfig(batches_per_epoch=per_epoch)
    training = make_module(tmp_path, PATCH, train=NAMES, loader=loader).train_dataloader()
    assert len(training) == per_epoch
    assert [len(batch["image"]) for batch in training] == [2] * per_epoch


def test_benchmark_makes_as_many_batches_as_asked(tmp_path) -> None:
    constant_cases(tmp_path, 2)
    module = make_module(
        tmp_path, PATCH, train=NAMES[:2], predict=NAMES[:2], loader=LoaderConfig(val_batch_size=3),
        benchmark=True, train_batches=4, test_batches=5,
    )  # fmt: skip
    assert [batch["image"].shape[0] for batch in module.train_dataloader()] == [2] * 4
    assert [tuple(batch["image"].shape) for batch in module.predict_dataloader()] == [(3, 1, *PATCH)] * 5


def test_data_module_can_be_imported_without_dali() -> None:
    for module in (data_module, order):
        at_import = [node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ImportFrom)]
        imported = " ".join(node.module for node in at_import)
        assert "dali" not in imported and "augmentations" not in imported
