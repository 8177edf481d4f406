"""An interrupted training is not a model."""

from __future__ import annotations

import pytest

from utils.errors import UserError
from utils.training_state import TrainingState, require_finished, write_training_state


def test_interrupted_training_is_refused_with_fold_and_epoch(tmp_path):
    write_training_state(tmp_path, TrainingState(fold=3, epochs=5, max_epochs=30, finished=False))
    with pytest.raises(UserError, match=r"fold 3 .* epoch 5 of 30"):
        require_finished(tmp_path, allow_unfinished=False)
    require_finished(tmp_path, allow_unfinished=True)


def test_finished_training_and_unknown_folder_are_taken(tmp_path):
    require_finished(tmp_path, allow_unfinished=False)
    write_training_state(tmp_path, TrainingState(fold=0, epochs=30, max_epochs=30, finished=True))
    require_finished(tmp_path, allow_unfinished=False)
