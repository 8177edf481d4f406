"""main.py with a decision for --budget that only the first process may make; a program for test_budget.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import main
from training import budget
from training.budget_keeper import BudgetPlan, Course, Pace


def decide(config, started_s, width_of) -> budget.Decision:
    assert os.environ.get("LOCAL_RANK", "0") == "0", "only the first process decides"
    options = {"max_epochs": 2, "batches_per_epoch": 2, "augment": "none", "learning_rate": 0.005}
    pace = Pace(step_s=1, epoch_s=0, validation_s=0, patches_s=0, end_s=0)
    # Much time, and yet no more steps than these.
    course = Course(per_epoch=2, every=1, only_last=False, limit=4)
    return budget.Decision(
        options=options, plan=BudgetPlan(budget_s=3600, total=4, pace=pace, course=course), lines=("decided once",)
    )


if __name__ == "__main__":
    budget.decide = decide
    sys.exit(main.main(sys.argv[1:]))
