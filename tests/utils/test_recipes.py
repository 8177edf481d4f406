"""Recipes: what they set, and that files and flags win over them."""

from __future__ import annotations

import dataclasses

import pytest

from data_loading.data_module import batch_spec
from tests.data_loading.shards import make_plan
from utils.args import GROUPS, Config, parse_config
from utils.flag_roles import ineffective_options
from utils.recipes import RECIPES


def recipe_of(*words: str) -> Config:
    return parse_config([*words])


def changed_fields(config: Config) -> set[str]:
    default = Config()
    return {
        field.name
        for group in GROUPS
        for field in dataclasses.fields(getattr(config, group))
        if getattr(getattr(config, group), field.name) != getattr(getattr(default, group), field.name)
    }


def test_the_reference_is_the_default():
    assert recipe_of("--recipe", "reference") == recipe_of() == Config()


@pytest.mark.parametrize("name", ["paper", "nnunet"])
def test_a_recipe_sets_its_own_values_and_nothing_else(name):
    config = recipe_of("--recipe", name)
    for field, value in RECIPES[name].items():
        assert any(getattr(getattr(config, group), field, None) == value for group in GROUPS), field
    assert changed_fields(config) <= {*RECIPES[name], "recipe"}
    assert ineffective_options(config) == []


def test_the_paper_s_numbers():
    config = recipe_of("--recipe=paper")
    optim = config.optim
    assert (optim.optimizer, optim.learning_rate, optim.weight_decay) == ("adam_l2", 3e-4, 3e-5)
    assert (optim.scheduler, optim.factor, optim.lr_patience) == ("loss_plateau", 0.2, 30)
    assert (optim.min_learning_rate, optim.max_epochs, optim.patience) == (1e-6, 1000, 0)
    assert config.loader.batches_per_epoch == 250 and not config.model.deep_supervision


def test_nnunet_s_numbers():
    config = recipe_of("--recipe", "nnunet")
    optim = config.optim
    assert (optim.optimizer, optim.learning_rate, optim.momentum, optim.weight_decay) == ("sgd", 1e-2, 0.99, 3e-5)
    assert (optim.scheduler, optim.max_epochs, optim.gradient_clip_val) == ("poly", 1000, 12)
    assert (config.loader.batches_per_epoch, config.loader.oversampling, optim.batch_dice) == (250, 0.33, "auto")
    assert config.model.deep_supervision and config.model.deep_supr_num == 0


@pytest.mark.parametrize(("recipe", "cases"), [("reference", 2), ("paper", 12), ("nnunet", 12)])
def test_slices_of_a_batch_come_from_as_many_cases_as_in_the_original(recipe, cases):
    assert batch_spec(make_plan((4, 4), batch_size=12), recipe_of("--recipe", recipe).loader).cases_per_batch == cases


def test_a_flag_wins_even_with_the_value_of_the_default():
    assert recipe_of("--recipe", "paper", "--learning_rate", "8e-4").optim.learning_rate == 8e-4
    assert recipe_of("--learning_rate", "8e-4", "--recipe", "paper").optim.learning_rate == 8e-4
    assert not recipe_of("--no_deep_supervision", "--recipe", "nnunet").model.deep_supervision


def test_a_file_wins_over_the_recipe_and_a_flag_over_the_file(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("learning_rate: 0.5\nmax_epochs: 7\n")
    config = recipe_of("--recipe", "nnunet", "--config", str(path), "--epochs", "9")
    assert (config.optim.learning_rate, config.optim.max_epochs, config.optim.scheduler) == (0.5, 9, "poly")


def test_a_file_may_choose_the_recipe_and_a_flag_another_one(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("recipe: paper\nfactor: 0.5\n")
    from_file = recipe_of("--config", str(path)).optim
    assert (from_file.recipe, from_file.optimizer, from_file.factor) == ("paper", "adam_l2", 0.5)
    flag = recipe_of("--config", str(path), "--recipe", "nnunet").optim
    assert (flag.recipe, flag.optimizer, flag.factor) == ("nnunet", "sgd", 0.5)


def test_an_unknown_recipe_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stop:
        recipe_of("--recipe", "cake")
    assert stop.value.code == 2 and "cake" in capsys.readouterr().err


def test_what_a_recipe_sets_in_vain_is_not_blamed_on_the_user():
    assert ineffective_options(recipe_of("--recipe", "paper", "--scheduler", "none")) == []
    [message] = ineffective_options(recipe_of("--recipe", "paper", "--exec_mode", "predict"))
    assert message.startswith("--recipe has no effect")
