"""Checkpoints: ours are self-contained, the reference's are read, everything else is one clear error."""

from __future__ import annotations

import dataclasses
import zipfile
from types import SimpleNamespace

import pytest
import torch

from models.checkpoint import check_fits, load_for_inference, load_weights, read_checkpoint, warm_start
from tests.models.builders import BRATS, TWO_CLASSES, WITH_IGNORE, make_network, make_plan, make_stage, with_spacing
from tests.models.checkpoints import SUPERVISED, save_ours, save_reference
from utils.config import ModelConfig
from utils.errors import UserError
from utils.schema import ChannelPlan


def test_own_checkpoint_needs_nothing_else(tmp_path):
    plan = make_plan(num_channels=2)
    state = save_ours(tmp_path / "last.ckpt", plan)
    network, loaded_plan, model = load_for_inference(tmp_path / "last.ckpt")
    assert loaded_plan == plan and model == SUPERVISED and not network.training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_reference_checkpoint_predicts_as_the_reference(tmp_path):
    plan = make_plan()
    theirs = save_reference(tmp_path / "reference.ckpt", plan).eval()
    assert read_checkpoint(tmp_path / "reference.ckpt").is_reference
    network, _, _ = load_for_inference(tmp_path / "reference.ckpt", plan=plan, model=ModelConfig())
    image = torch.randn(1, 1, 8, 8, 8)
    # Of a single sample; oneDNN sums in another order than torch itself.
    torch.testing.assert_close(network(image), theirs(image), rtol=1e-4, atol=1e-5)


def test_reference_checkpoint_needs_a_plan(tmp_path):
    save_reference(tmp_path / "reference.ckpt", make_plan())
    with pytest.raises(UserError, match=r"plan\.json"):
        load_for_inference(tmp_path / "reference.ckpt")


def test_namespace_is_let_in_for_that_load_only(tmp_path):
    save_reference(tmp_path / "reference.ckpt", make_plan())
    read_checkpoint(tmp_path / "reference.ckpt")
    with pytest.raises(Exception, match="Namespace"):
        torch.load(tmp_path / "reference.ckpt", weights_only=True)


def test_code_in_a_checkpoint_is_refused(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {"where": tmp_path}}, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(tmp_path / "bad.ckpt")


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing.ckpt does not exist"):
        read_checkpoint(tmp_path / "nothing.ckpt")


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_truncated_checkpoint_is_named(tmp_path, keep):
    save_ours(tmp_path / "last.ckpt", make_plan())
    content = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(UserError, match=r"last.ckpt cannot be read: it is truncated"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_a_weight_that_is_not_what_was_written_is_named(tmp_path):
    save_ours(tmp_path / "last.ckpt", make_plan())
    content = bytearray((tmp_path / "last.ckpt").read_bytes())
    with zipfile.ZipFile(tmp_path / "last.ckpt") as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    content[largest.header_offset + largest.file_size // 2] ^= 1
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=f"damaged.*{largest.filename}"):
        read_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"state_dict": {"encoder.weight": torch.zeros(1)}}])
def test_file_without_a_network_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"other.ckpt"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_future_format_is_refused(tmp_path):
    save_ours(tmp_path / "last.ckpt", make_plan(), format_version=2)
    with pytest.raises(UserError, match="format version 2"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_checkpoint_of_the_same_task_fits(tmp_path):
    save_ours(tmp_path / "last.ckpt", make_plan())
    contents = read_checkpoint(tmp_path / "last.ckpt")
    check_fits(contents, make_plan())
    check_fits(contents, make_plan(), model=SUPERVISED)


OTHER_DATA = {
    "channels": make_plan(num_channels=2),
    "labels": make_plan(labels=dataclasses.replace(TWO_CLASSES, names=("background", "tumour", "oedema"))),
    "ignored label": make_plan(labels=dataclasses.replace(TWO_CLASSES, ignore_value=7)),
    "patch size": make_plan(make_stage((16, 8, 8))),
    "dimension": make_plan(make_stage((8, 8))),
    "spacing": with_spacing(make_plan(), (2.0, 1.0, 1.0)),
    "--ohe": dataclasses.replace(make_plan(), mask_channel=True),
    "normalised before resampling": dataclasses.replace(make_plan(), normalize_first=True),
    "order of axes": dataclasses.replace(make_plan(), axes=(1, 0, 2)),
}


@pytest.mark.parametrize("difference", OTHER_DATA)
def test_checkpoint_of_another_task_is_refused(tmp_path, difference):
    save_ours(tmp_path / "last.ckpt", make_plan())
    with pytest.raises(UserError, match=f"(?s)another task.*{difference}"):
        check_fits(read_checkpoint(tmp_path / "last.ckpt"), OTHER_DATA[difference])


def test_other_order_of_normalisation_comes_with_the_way_out(tmp_path):
    save_ours(tmp_path / "last.ckpt", make_plan())
    with pytest.raises(UserError, match=r'set "normalize_first": false in plan\.json.*run preprocess\.py again'):
        check_fits(read_checkpoint(tmp_path / "last.ckpt"), dataclasses.replace(make_plan(), normalize_first=True))


def test_all_differences_are_listed(tmp_path):
    save_ours(tmp_path / "last.ckpt", make_plan())
    ct = ChannelPlan(name="CT", scheme="ct", lower=-1.0, upper=1.0, mean=0.0, std=1.0)
    other = dataclasses.replace(make_plan(labels=WITH_IGNORE), channels=(ct,))
    with pytest.raises(UserError, match=r"(?s)channels.*labels.*ignored label"):
        check_fits(read_checkpoint(tmp_path / "last.ckpt"), other)


def test_resuming_needs_the_same_network_options(tmp_path):
    save_ours(tmp_path / "last.ckpt", make_plan())
    contents = read_checkpoint(tmp_path / "last.ckpt")
    other = make_plan(make_stage(filters=(4, 6, 10)))
    with pytest.raises(UserError, match=r"(?s)filters.*--norm"):
        check_fits(contents, other, model=dataclasses.replace(SUPERVISED, norm="batch"))


def test_prediction_does_not_need_the_supervision_heads(tmp_path):
    plan = make_plan()
    state = save_ours(tmp_path / "last.ckpt", plan)
    network = make_network(plan, ModelConfig())
    load_weights(network, read_checkpoint(tmp_path / "last.ckpt"))
    assert torch.equal(network.state_dict()["output_block.conv.conv.weight"], state["output_block.conv.conv.weight"])
    save_ours(tmp_path / "plain.ckpt", plan, ModelConfig())
    load_weights(make_network(plan, SUPERVISED), read_checkpoint(tmp_path / "plain.ckpt"))


def test_weights_that_do_not_fit_are_listed(tmp_path):
    save_ours(tmp_path / "last.ckpt", make_plan())
    network = make_network(make_plan(num_channels=2), ModelConfig(res_block=True))
    with pytest.raises(UserError, match=r"(?s)conv3\S+ is missing.*input_block\S+ has shape \(4, 1, 3, 3, 3\)"):
        load_weights(network, read_checkpoint(tmp_path / "last.ckpt"))


def test_warm_start_takes_all_weights_of_the_same_task(tmp_path):
    plan = make_plan()
    state = save_ours(tmp_path / "last.ckpt", plan)
    network = make_network(plan, SUPERVISED, seed=9)
    assert warm_start(network, read_checkpoint(tmp_path / "last.ckpt")) == []
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("save", [save_ours, save_reference])
def test_warm_start_renews_heads_of_another_class_count_and_names_them(tmp_path, save):
    save(tmp_path / "last.ckpt", make_plan())
    plan = make_plan(labels=WITH_IGNORE)
    network = make_network(plan, SUPERVISED, seed=9)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    messages = warm_start(network, read_checkpoint(tmp_path / "last.ckpt"))
    assert [message.split()[0] for message in messages] == ["deep_supervision_heads.0", "output_block"]
    for name, value in network.state_dict().items():
        # Biases and norm weights start equal everywhere.
        if value.dim() > 1:
            assert torch.equal(value, before[name]) == name.startswith(("deep_supervision_heads", "output_block"))


def test_warm_start_may_add_or_drop_supervision(tmp_path):
    plan = make_plan()
    save_ours(tmp_path / "plain.ckpt", plan, ModelConfig())
    (message,) = warm_start(make_network(plan, SUPERVISED), read_checkpoint(tmp_path / "plain.ckpt"))
    assert message.startswith("deep_supervision_heads.0 ")
    save_ours(tmp_path / "supervised.ckpt", plan)
    assert warm_start(make_network(plan), read_checkpoint(tmp_path / "supervised.ckpt")) == []


def test_warm_start_from_another_architecture_is_refused(tmp_path):
    save_ours(tmp_path / "last.ckpt", make_plan())
    with pytest.raises(UserError, match="bottleneck"):
        warm_start(make_network(make_plan(make_stage(filters=(4, 6, 10)))), read_checkpoint(tmp_path / "last.ckpt"))


def test_regions_survive_the_checkpoint(tmp_path):
    save_ours(tmp_path / "last.ckpt", make_plan(labels=BRATS), ModelConfig(filters=(4, 6, 8)))
    contents = read_checkpoint(tmp_path / "last.ckpt")
    assert contents.plan.labels == BRATS and contents.model.filters == (4, 6, 8)


def test_what_a_file_holds_besides_tensors_is_named_without_advice_to_trust_it(tmp_path):
    torch.save({"state_dict": {}, "more": SimpleNamespace(a=1)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"\(Unsupported global: GLOBAL types.SimpleNamespace\)") as found:
        read_checkpoint(tmp_path / "x.pt")
    assert "\x1b" not in str(found.value) and "trust" not in str(found.value)
