"""Which trainings may be continued, which scores are flattered, and how a longer schedule goes on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models.checkpoint import CheckpointContents
from models.resuming import TrainingNotes, check_resumable, earlier_cases, flattered_scores, restart_schedule
from models.schedules import build_scheduler
from tests.models.builders import make_plan
from utils.args import parse_config
from utils.config import ModelConfig
from utils.errors import UserError
from utils.optim_config import OptimConfig
from utils.schema import Fold
from utils.training_record import TrainingRecord, training_options
from utils.training_state import read_training_state

FOLD = Fold(train=("a", "b"), val=("c",))
PLAN, MODEL = make_plan(), ModelConfig()


def record(*words: str, **changes) -> TrainingRecord:
    options = training_options(parse_config(list(words)), batch_size=2)
    return dataclasses.replace(TrainingRecord(fold=0, cases=FOLD, options=options, processes=1), **changes)


def checkpoint(training: TrainingRecord | None, plan=PLAN) -> CheckpointContents:
    options = {} if training is None else training.options
    return CheckpointContents(
        path=Path("last.ckpt"), state_dict={}, plan=plan, model=MODEL, training=training, options=options
    )


def check(stored: TrainingRecord | None, wanted: TrainingRecord) -> list[str]:
    return check_resumable(checkpoint(stored), wanted, PLAN, MODEL)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--optimizer", "sgd"), "--optimizer was adam, now it is sgd"),
        (("--learning_rate", "0.1"), "--learning_rate was 0.0008, now it is 0.1"),
        (("--scheduler", "multistep", "--steps", "3", "5"), "--scheduler was none, now it is multistep"),
        (("--weight_decay", "0.1"), "--weight_decay"),
        (("--seed", "2"), "--seed was 1, now it is 2"),
        (("--focal",), "--focal was False, now it is True"),
        (("--batch_dice", "never"), "--batch_dice"),
        (("--gradient_clip_val", "1"), "--gradient_clip_val"),
        (("--patience", "3"), "--patience was 100, now it is 3"),
        (("--min_epochs", "3"), "--min_epochs"),
        (("--augment", "nnunet"), "--augment was reference, now it is nnunet"),
        (("--oversampling", "0.5"), "--oversampling"),
        (("--elastic_probability", "0.2"), "--elastic_probability"),
        (("--batches_per_epoch", "9"), "--batches_per_epoch"),
        (("--overlap", "0.25"), "--overlap"),
        (("--precision", "bf16"), "--precision"),
        (("--amp",), "--amp"),
        (("--max_epochs", "10"), "--max_epochs was 10000, now it is 10; it may only grow"),
    ],
)
@pytest.mark.slow
def test_option_that_changes_what_is_trained_is_refused_by_name_with_the_two_ways_out(words, says):
    with pytest.raises(UserError) as error:
        check(record(), record(*words))
    message = str(error.value)
    assert says in message and "flags" in message and "--ckpt_path last.ckpt in place of --resume_training" in message


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        (("--scheduler", "multistep", "--steps", "3"), ("--scheduler", "multistep", "--steps", "4"), "--steps was 3"),
        (("--scheduler", "plateau"), ("--scheduler", "plateau", "--factor", "0.1"), "--factor was 0.3"),
        (("--scheduler", "plateau"), ("--scheduler", "plateau", "--lr_patience", "9"), "--lr_patience was 70"),
        (("--optimizer", "sgd"), ("--optimizer", "sgd", "--momentum", "0.9"), "--momentum was 0.99"),
        (("--dim", "2"), ("--dim", "2", "--nvol", "1"), "--nvol was 2"),
    ],
)
def test_steps_of_a_schedule_and_the_like_are_compared_where_they_count(before, now, says):
    with pytest.raises(UserError, match=says):
        check(record(*before), record(*now))
    # Without the schedule or optimiser that looks at it, the option changes nothing.
    assert check(record(), record(*now[2:])) == []


def test_batch_size_of_the_plan_may_be_given_as_a_flag():
    assert record("--batch_size", "2").options == record().options
    with pytest.raises(UserError, match="--batch_size was 4, now it is 2"):
        check(record(options=record().options | {"batch_size": 4}), record())


def test_places_devices_and_names_may_change_and_epochs_may_grow():
    words = ("--num_workers", "1", "--logname", "x", "--results", "y", "--gpus", "0", "--compile", "--layout", "NCDHW")
    assert check(record("--max_epochs", "3"), record(*words, "--max_epochs", "8", "--val_batch_size", "1")) == []


def test_option_that_a_later_version_brought_is_no_difference():
    older = {name: value for name, value in record().options.items() if name != "focal"}
    assert check(record(options=older), record("--focal")) == []


def test_other_folds_are_refused_and_leaked_cases_named():
    other = Fold(train=("b", "c"), val=("a",))
    with pytest.raises(UserError) as error:
        check(record(), record(cases=other, fold=1))
    message = str(error.value)
    assert "--fold was 0, now it is 1" in message
    assert "it was trained on 1 case (a), which are validation cases now" in message
    assert "1 case (c) are new among its training cases" in message


def test_changed_shards_are_refused_by_case_and_a_record_that_does_not_say_is_taken():
    stored, now = record(data={"a": "1", "b": "1", "c": "1"}), record(data={"a": "1", "b": "2", "c": "3"})
    with pytest.raises(UserError, match=r"preprocessed data of 2 cases \(b, c\) have changed since"):
        check(stored, now)
    assert check(stored, stored) == [] and check(record(), now) == []


def test_checkpoint_of_an_earlier_version_is_warned_of_and_its_optimiser_compared():
    stored = checkpoint(None)
    [message] = check_resumable(stored, record(), PLAN, MODEL)
    assert "earlier version" in message and "same fold and flags" in message
    with_optim = dataclasses.replace(stored, options={"optimizer": "sgd", "max_epochs": 3})
    with pytest.raises(UserError, match="--optimizer was sgd, now it is adam"):
        check_resumable(with_optim, record(), PLAN, MODEL)


def test_another_number_of_processes_is_said():
    assert "2 processes" in check(record(processes=2), record())[0]


def test_scores_of_cases_that_were_trained_on_are_flattered():
    contents = checkpoint(record(earlier=("x",)))
    assert flattered_scores(contents, ["c", "d"], PLAN) == []
    [message] = flattered_scores(contents, ["a", "c", "x"], PLAN)
    assert "(fold 0) was trained on 2 cases (a, x) of the 3" in message
    # Names of another data set's cases mean nothing.
    assert flattered_scores(contents, ["a"], dataclasses.replace(PLAN, task="05")) == []
    assert "does not say" in flattered_scores(checkpoint(None), ["a"], PLAN)[0]


def test_a_new_training_remembers_from_which_cases_its_start_has_learned():
    assert earlier_cases(checkpoint(record(earlier=("x",))), PLAN) == ("a", "b", "x")
    assert earlier_cases(checkpoint(record()), dataclasses.replace(PLAN, task="05")) == ()
    assert earlier_cases(None, PLAN) == ()


@pytest.mark.parametrize("scheduler", ["cosine", "poly"])
def test_longer_schedule_goes_on_as_if_it_had_been_begun_so(scheduler):
    short, long = (OptimConfig(scheduler=scheduler, learning_rate=1.0, max_epochs=n) for n in (3, 8))

    def begin(optim: OptimConfig):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
        return optimizer, build_scheduler(optimizer, optim)

    def step(optimizer, schedule, number: int) -> list[float]:
        rates = []
        for _ in range(number):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return rates

    uninterrupted = step(*begin(long), 8)
    first = begin(short)
    step(*first, 3)
    state, rates = first[1].state_dict(), first[0].state_dict()
    # As Lightning restores them, into a run that is asked for 8 epochs.
    optimizer, schedule = begin(long)
    schedule.load_state_dict(state)
    optimizer.load_state_dict(rates)
    trainer = SimpleNamespace(lr_scheduler_configs=[SimpleNamespace(scheduler=schedule)], optimizers=[optimizer])
    restart_schedule(trainer, long)
    assert step(optimizer, schedule, 5) == uninterrupted[3:]


def test_training_json_tells_how_far_a_training_is(tmp_path):
    notes = TrainingNotes(record(fold=2), tmp_path / "checkpoints", OptimConfig(max_epochs=2))
    trainer = SimpleNamespace(is_global_zero=True, current_epoch=0, max_epochs=3)
    seen = []
    for call in (notes.on_train_start, notes.on_train_epoch_end):
        call(trainer, None)
        seen.append(read_training_state(tmp_path / "checkpoints"))
    # Stopped early.
    trainer.current_epoch = 1
    notes.finish(trainer)
    seen.append(read_training_state(tmp_path / "checkpoints"))
    assert [(s.fold, s.epochs, s.max_epochs, s.finished) for s in seen] == [
        (2, 0, 3, False), (2, 1, 3, False), (2, 1, 3, True)
    ]  # fmt: skip


def test_other_processes_than_the_first_write_nothing(tmp_path):
    notes = TrainingNotes(record(), tmp_path / "checkpoints", OptimConfig())
    notes.on_train_start(SimpleNamespace(is_global_zero=False, current_epoch=0), None)
    assert not list(tmp_path.iterdir())
