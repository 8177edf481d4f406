"""Torture of the whole program; `python -m tests.torture` does it, and the tests here a little of it."""

import os
import sys

# Before anything starts threads: commands run in forks, and a fork has only one of them. Tests that are collected
# keep the variables of whoever runs them.
if "pytest" not in sys.modules:
    for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[_name] = "1"
