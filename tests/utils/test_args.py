from __future__ import annotations

import subprocess
import sys

import pytest

from utils.args import Config, parse_config, to_words, with_options
from utils.errors import UserError, run_cli
from utils.flag_roles import ineffective_options
from utils.optim_config import OptimConfig
from utils.task_number import checked_task

FLAGS = [
    "--exec_mode train", "--data d", "--results r", "--logname l.json", "--task 04", "--gpus 1",
    "--learning_rate 0.001", "--gradient_clip_val 1", "--negative_slope 0.02", "--tta", "--amp", "--benchmark",
    "--residual", "--focal", "--sync_batchnorm", "--save_ckpt", "--nfolds 4", "--seed 7", "--skip_first_n_eval 3",
    "--ckpt_path c.ckpt", "--fold 2", "--patience 9", "--lr_patience 8", "--batch_size 2", "--val_batch_size 3",
    "--steps 10 20", "--profile", "--momentum 0.9", "--weight_decay 0.1", "--save_preds", "--dim 2",
    "--resume_training", "--factor 0.5", "--num_workers 3", "--min_epochs 2", "--max_epochs 5", "--warmup 6",
    "--norm batch", "--nvol 3", "--data2d_dim 2", "--oversampling 0.3", "--overlap 0.25", "--affinity single",
    "--scheduler plateau", "--optimizer sgd", "--blend constant", "--train_batches 4", "--test_batches 5",
    "--nodes 2", "--epochs 5", "--ckpt_store_dir s", "--deep_supervision", "--deep_supr_num 3", "--brats",
    "--invert_resampled_y", "--depth 4", "--min_fmap 2", "--filters 8 16 32", "--res_block", "--layout NDHWC",
    "--accelerator cpu", "--precision bf16", "--compile", "--processes 2", "--save_probabilities",
    "--augment nnunet", "--elastic_probability 0.2",
    "--recipe paper", "--batches_per_epoch 250", "--scheduler poly", "--scheduler loss_plateau", "--batch_dice auto",
    "--min_learning_rate 1e-6", "--optimizer adam_l2", "--splits f.json", "--group_by (.+)_visit",
    "--fused_norm off", "--compile_mode reduce-overhead", "--winograd on",
]  # fmt: skip


def write(folder, text, name="options.yaml"):
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("flag", FLAGS)
def test_every_documented_flag_is_accepted_and_changes_the_configuration(flag):
    changed = parse_config(flag.split()) != Config()
    assert changed or flag in ("--exec_mode train", "--save_ckpt")


def test_hyphens_and_underscores_are_the_same_flag():
    # --splits and --group_by exclude each other.
    words = " ".join(flag for flag in FLAGS if "--group_by" not in flag).split()
    hyphens = [word.replace("_", "-") if word.startswith("--") else word for word in words]
    assert parse_config(hyphens) == parse_config(words) != Config()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("--res_block", "--residual"),
        ("--max_epochs 3", "--epochs 3"),
        ("--blend constant", "--blend-mode constant"),
        ("--blend constant", "--blend_mode constant"),
        ("--task 4", "--task 04"),
        ("--ckpt_path a", "--model a"),
        ("--data d", "--prepared d"),
        ("--model a --ckpt_path b", "--ckpt_path b"),
        ("--ckpt_path a --model b", "--ckpt_path b"),
        ("--overlap=0.25", "--overlap 0.25"),
    ],
)
def test_both_spellings_mean_the_same(one, other):
    assert parse_config(one.split()) == parse_config(other.split()) != Config()


@pytest.mark.parametrize("off", ["--no_amp", "--no-amp"])
def test_a_switch_has_an_opposite(off):
    assert parse_config(["--amp"]).hardware.amp
    assert not parse_config(["--amp", off]).hardware.amp
    assert parse_config([off, "--amp"]).hardware.amp


def test_values_arrive_with_their_types():
    config = parse_config(["--steps", "3", "4", "--dim", "2", "--filters", "8", "16", "--gpus", "0"])
    assert (config.optim.steps, config.run.dim, config.model.filters) == ((3, 4), 2, (8, 16))
    assert config.hardware.gpus == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"overlap": 0.25, "amp": true, "steps": [1, 2]}'),
        ("a.yaml", "overlap: 0.25\namp: yes\nsteps: [1, 2]"),
    ],
)
def test_a_file_gives_defaults(tmp_path, name, text):
    config = parse_config(["--config", write(tmp_path, text, name)])
    assert (config.inference.overlap, config.hardware.amp, config.optim.steps) == (0.25, True, (1, 2))
    assert config.loader == Config().loader


@pytest.mark.parametrize(
    ("text", "axes"), [("none", ("none",)), ("S A", ("S", "A")), ("R", ("R",)), ("[S, R]", ("S", "R"))]
)
def test_a_file_gives_several_values_as_a_command_line_does(tmp_path, text, axes):
    config = parse_config(["--config", write(tmp_path, f"mirror_axes: {text}\nfilters: 8\nsteps: 3 5\n")])
    assert config.loader.mirror_axes == axes and config.model.filters == (8,) and config.optim.steps == (3, 5)


def test_a_file_may_use_hyphens_and_second_names(tmp_path):
    path = write(
        tmp_path, "deep-supervision: true\nbudget: 90.5\nepochs: 4\nresidual: true\nblend_mode: constant\ntask: 04\n"
    )
    config = parse_config([f"--config={path}"])
    assert config.model.deep_supervision and config.model.res_block
    assert (config.optim.max_epochs, config.inference.blend, config.run.task) == (4, "constant", "04")
    assert config.optim.budget == "90.5"


def test_an_explicit_flag_wins_over_the_file_even_with_the_default_value(tmp_path):
    path = write(tmp_path, "overlap: 0.25\namp: true\nfold: 3\n")
    config = parse_config(["--overlap", "0.5", "--config", path, "--no-amp", "--fold", "0"])
    assert (config.inference.overlap, config.hardware.amp, config.run.fold) == (0.5, False, 0)


def test_a_number_without_a_point_is_a_number(tmp_path):
    assert parse_config(["--config", write(tmp_path, "learning_rate: 8e-4")]).optim.learning_rate == 8e-4


@pytest.mark.parametrize("text", ["steps: [5]\nscheduler: multistep", "scheduler: multistep\nsteps: [5]"])
def test_the_order_of_keys_in_a_file_does_not_matter(tmp_path, text):
    assert parse_config(["--config", write(tmp_path, text)]).optim.steps == (5,)


def test_a_flag_may_supply_what_the_file_leaves_out(tmp_path):
    path = write(tmp_path, "scheduler: multistep\nfold: 7")
    config = parse_config(["--config", path, "--steps", "5", "--nfolds", "10"])
    assert (config.optim.scheduler, config.optim.steps, config.run.fold) == ("multistep", (5,), 7)
    with pytest.raises(UserError, match="multistep needs --steps"):
        parse_config(["--config", path, "--nfolds", "10"])


def test_all_wrong_entries_of_a_file_are_listed(tmp_path):
    path = write(tmp_path, 'overlapp: 0.2\namp: "false"\nfold: 1.5\nnorm: layer\nsteps: 3\ntta: true')
    with pytest.raises(UserError) as error:
        parse_config(["--config", path])
    message = str(error.value)
    assert all(word in message for word in ("'overlapp'", "amp", "fold", "norm", "steps", path, "Known options"))
    assert "  - tta" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [("- 1\n- 2", "mapping"), ("a: [", "malformed"), ("{", "malformed"), (None, "cannot be read")],
)
def test_an_unusable_file_is_a_user_error(tmp_path, text, message):
    path = str(tmp_path / "absent.yaml") if text is None else write(tmp_path, text)
    with pytest.raises(UserError, match=message):
        parse_config(["--config", path])


def test_a_malformed_json_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="malformed"):
        parse_config(["--config", write(tmp_path, "amp: true", "a.json")])


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "--fold -1", "--nfolds 1", "--overlap 1", "--overlap -0.1", "--learning_rate 0", "--oversampling 1.5",
        "--negative_slope 1", "--max_epochs 0", "--batch_size 0", "--gpus -1", "--num_workers 0", "--warmup -1",
        "--momentum 1", "--factor 1", "--deep_supr_num -1", "--task brain", "--scheduler multistep", "--nodes 0",
        "--filters 0 8", "--steps 5 -1", "--overlap nan", "--learning_rate nan", "--batches_per_epoch -1",
        "--min_learning_rate -1", "--patience -1", "--splits a.json --group_by (.)",
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_one_line_and_status_2(words, capsys):
    assert run_cli(lambda: parse_config(words.split()) and 0) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert captured.err.startswith("error: ") and words.split()[0] in captured.err


@pytest.mark.parametrize("words", ["--fold x", "--unknown 1", "--exec_mode test", "--dim 4", "--task", "stray"])
def test_a_malformed_command_line_ends_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config(words.split())
    assert stop.value.code == 2
    capsys.readouterr()


def test_help_shows_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(flag.split()[0] in text for flag in FLAGS)
    assert "(default: 0.0008)" in text and "(default: gaussian)" in text


@pytest.mark.parametrize(
    ("words", "option", "reason"),
    [
        ("--momentum 0.9", "--momentum", "--optimizer sgd"),
        ("--steps 3", "--steps", "--scheduler multistep"),
        ("--lr_patience 3", "--lr_patience", "plateau"),
        ("--factor 0.5 --scheduler cosine", "--factor", "multistep or plateau"),
        ("--deep_supr_num 3", "--deep_supr_num", "--deep_supervision"),
        ("--nvol 3", "--nvol", "--dim 2"),
        ("--nvol 3 --dim 2 --data2d_dim 2", "--nvol", "single slices"),
        ("--sync_batchnorm", "--sync_batchnorm", "--norm batch"),
        ("--warmup 3", "--warmup", "--benchmark"),
        ("--amp --precision fp32", "--amp", "--precision"),
        ("--tta", "--tta", "evaluate and predict"),
        ("--save_preds --exec_mode evaluate", "--save_preds", "predict"),
        ("--save_probabilities --exec_mode predict", "--save_probabilities", "--save_preds"),
        ("--learning_rate 0.1 --exec_mode predict", "--learning_rate", "training"),
        ("--depth 3 --exec_mode predict", "--depth", "checkpoint"),
        ("--no_save_ckpt --exec_mode predict", "--save_ckpt", "training"),
        ("--affinity single --gpus 0", "--affinity", "GPU"),
        ("--fused_norm off --norm batch", "--fused_norm", "--norm instance"),
        ("--fused_norm off --layout NCDHW", "--fused_norm", "NDHWC"),
        ("--compile_mode max-autotune", "--compile_mode", "--compile"),
        ("--augment none --elastic_probability 0.2", "--elastic_probability", "--augment none"),
        ("--augment none --mirror_axes S", "--mirror_axes", "--augment none"),
        ("--mirror_axes none --exec_mode predict", "--mirror_axes", "training"),
        ("--augment nnunet --exec_mode evaluate", "--augment", "training"),
        ("--min_learning_rate 1e-6", "--min_learning_rate", "stays as it is"),
        ("--batches_per_epoch 9 --exec_mode evaluate", "--batches_per_epoch", "training"),
        ("--splits f.json --nfolds 3", "--nfolds", "--splits"),
        ("--train_batches 3", "--train_batches", "--batches_per_epoch"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_an_option_without_effect_is_named_with_the_reason(words, option, reason):
    messages = ineffective_options(parse_config(words.split()))
    assert len(messages) == 1
    assert messages[0].startswith(f"{option} has no effect") and reason in messages[0]


@pytest.mark.parametrize(
    "words",
    [
        "", "--momentum 0.9 --optimizer sgd", "--scheduler multistep --steps 3 --factor 0.5", "--nvol 3 --dim 2",
        "--scheduler plateau --lr_patience 3 --factor 0.5", "--benchmark --warmup 3 --train_batches 9",
        "--exec_mode predict --tta --save_preds --save_probabilities", "--amp",
        "--elastic_probability 0.2", "--augment nnunet", "--compile --compile_mode max-autotune", "--fused_norm off",
        "--fused_norm off --winograd off --gpus 0",
        "--exec_mode predict --benchmark --test_batches 9 --deep_supr_num 3 --deep_supervision --norm batch",
    ],
)  # fmt: skip
def test_options_with_effect_give_no_warning(words):
    assert ineffective_options(parse_config(words.split())) == []


def test_parsing_needs_no_heavy_package():
    """`--help` would take seconds otherwise."""
    heavy = ("torch", "monai", "nvidia", "scipy", "numpy", "pytorch_lightning", "matplotlib", "nibabel")
    code = f"import sys, utils.args; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_options_turn_into_the_words_that_mean_them():
    words = ["--task", "04", "--filters", "8", "16", "--amp"]
    config = parse_config(words)
    assert to_words(config.run, ["task", "splits", "benchmark"]) == words[:2]
    assert to_words(config.model, ["filters"]) + to_words(config.hardware, ["amp"]) == words[2:]


def test_a_configuration_cannot_be_changed():
    with pytest.raises(AttributeError):
        OptimConfig().learning_rate = 1


@pytest.mark.parametrize(("task", "name"), [("4", "04"), ("04", "04"), ("004", "04"), ("070", "70"), ("123", "123")])
def test_a_task_has_one_name(task, name):
    assert checked_task(task) == name
    assert parse_config(["--task", task]).run.task == name


@pytest.mark.parametrize("name", ["options.json", "options.yaml"])
def test_a_mark_of_the_encoding_does_not_matter(tmp_path, name):
    (tmp_path / name).write_text('{"max_epochs": 3}', encoding="utf-8-sig")
    assert parse_config(["--config", str(tmp_path / name)]).optim.max_epochs == 3


def test_a_null_character_in_a_config_file_is_refused_by_name(tmp_path):
    (tmp_path / "c.json").write_text('{"splits": "a\\u0000b"}')
    with pytest.raises(UserError, match=r"splits: .* holds a character that no name may have"):
        parse_config(["--config", str(tmp_path / "c.json")])


def test_given_options_are_those_of_the_command_line_and_the_file_in_any_spelling(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("blend_mode: constant\nfactor: 0.5\n")
    words = ["--config", str(path), "--no-amp", "--epochs=3", "--filters", "4", "8", "--recipe", "nnunet"]
    assert parse_config(words).given == ("amp", "blend", "factor", "filters", "max_epochs", "recipe")
    assert parse_config([]).given == () and parse_config(["--no_report"]).given == ("report",)


def test_options_are_replaced_in_their_groups_and_checked():
    config = with_options(parse_config(["--amp"]), {"filters": (4, 8), "max_epochs": 3})
    assert (config.model.filters, config.optim.max_epochs, config.hardware.amp) == ((4, 8), 3, True)
    with pytest.raises(UserError, match="--max_epochs must be at least 1"):
        with_options(config, {"max_epochs": 0})


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--budget soon", "write it like 90s, 10m"),
        ("--ema 1", "--ema must lie in"),
        ("--decay_share 0", "--decay_share must lie in"),
        ("--warmup_steps 5 --scheduler plateau", "works with --scheduler none, cosine, poly, wsd, not with plateau"),
        ("--warmup_steps -1", "--warmup_steps must not be negative"),
    ],
)
def test_schedules_and_budgets_out_of_range_are_refused(flags, says):
    with pytest.raises(UserError, match=says):
        parse_config(flags.split())
