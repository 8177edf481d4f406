"""Say what a model is: data, channels, structures, Dice of its cross-validation, licence.

python scripts/info.py model.zip
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.args import parse
from utils.errors import EXIT_OK, run_cli


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Say what a model is: data, channels, structures, Dice of its cross-validation, licence."""

    model: Annotated[Path, tyro.conf.Positional]
    """What inference.py takes as --model: exported zip, checkpoint, folder of checkpoints or folds, or a decision."""
    json: bool = False
    """Print JSON, for a program."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the card of one model."""
    options = parse(InfoOptions, argv, prog="info.py")
    # After --help.
    from cross_validation.records import scores_of_model
    from inference.card import card_lines, license_note, make_card, read_card
    from inference.model_set import load_model_or_set
    from utils.files import to_dict

    # Whatever the card says, what cannot predict is said first.
    model = load_model_or_set(options.model, allow_unfinished=True)
    card = read_card(options.model) or make_card(model, scores_of_model(model))
    note = license_note(options.model)
    if options.json:
        print(json.dumps({**to_dict(card), "licence": note}, indent=1))
    else:
        print("\n".join(card_lines(card, note)))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_cli(main))
