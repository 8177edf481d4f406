"""How well doubt finds masks that need a human: AUROC on scans that no network of a model has seen, and its cost.

python -m benchmarks.doubt --model results/04_3d_fullres --images unseen/images --labels unseen/labels \
    --output results/doubt

Two questions, as the first is easy and the second is not: which of scans that were disturbed (noise, blur, inversion,
flip, bias field, half missing; one in seven is left as it is) have a mean Dice below 0.7, and which of the clean scans
make the tenth with the lowest Dice. The second is asked of all clean scans. What is predicted already is kept.

What a weighted mean of what networks say could reach is told by the best mix of the signals for these very scans. It is
chosen by the answers, so that weights that are chosen without them are not expected to do as well.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, zoom
from scipy.stats import rankdata

from inference.doubt_files import MEANS, Doubts
from inference.predictor import Predictor
from inference.run import NetworkUse, predict_folder
from inference.scan_run import ScanJob, list_scans
from utils.args import parse
from utils.certainty import DOUBT_ENDING, DoubtRecord
from utils.errors import UserError, run_cli
from utils.files import read_json, write_json
from utils.nifti import read_image, read_label, write_volume
from utils.scan_names import scan_files, scan_stem
from utils.schema import LabelScheme
from utils.scores import dice_from_counts
from utils.scoring import class_indices, score_mask

FAILED_BELOW = 0.7
WORST_SHARE = 0.1
CLEAN = "clean"
REPEATS = 8
SIGNALS = ("overlap", "settled", "size", "agreement")
SHARES = (0.0, 0.25, 0.5, 1.0)
"""How much each of them may count in a mix."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure how well doubt finds bad masks."""

    model: Path
    """What inference.py --model takes; a folder of a cross-validation has verdicts, too."""
    images: Path
    """Folder of scans that no network of the model was trained on."""
    labels: Path
    """Folder of their labels, of the same names."""
    output: Path
    """Folder for disturbed scans, masks and doubt.json."""
    limit: int | None = None
    """Take so many scans only."""
    disturbed: int = 84
    """Number of disturbed scans, in turns of seven kinds."""
    seed: int = 0
    """Of noise and bias fields."""
    cpu_scans: int = 3
    """Scans of which the cost in CPU time is measured (0: none)."""
    folds: tuple[int, ...] | None = None
    """Folds of the model that predict (default: all)."""


def noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise as strong as the scan's own spread."""
    return image + rng.normal(0, image.std(), image.shape)


def blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian of two voxels."""
    return gaussian_filter(image, 2.0)


def inversion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bright becomes dark."""
    return image.max() + image.min() - image


def flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Front and back swapped; the label is flipped, too."""
    return image[:, ::-1]


def bias(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A smooth field that changes intensities by up to a factor of about seven."""
    field = zoom(rng.uniform(-1, 1, (3, 3, 3)), [size / 3 for size in image.shape], order=1)
    return image * np.exp(2 * field[tuple(slice(size) for size in image.shape)])


def half(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of the scan along its second axis lost."""
    lost = image.copy()
    lost[:, : image.shape[1] // 2] = image.min()
    return lost


DISTURBANCES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "noise": noise, "blur": blur, "inversion": inversion, "flip": flip, "bias": bias, "half": half,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A predicted scan: how it was disturbed, its mean Dice, and scores of which higher means more doubtful."""

    case: str
    kind: str
    dice: float
    scores: dict[str, float]
    doubtful: bool | None
    remarks: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    options = parse(Options, argv, prog="benchmarks.doubt")
    scans, labels = options.output / "scans", options.output / "labels"
    write_scans(options, scans, labels)
    job = ScanJob(
        input=scans, output=options.output / "masks", model=options.model, folds=options.folds,
        save_probabilities=False, overwrite=False, memory_gb=None,
    )  # fmt: skip
    use = NetworkUse(batch_size=None, gpus=0, amp=False, compile=False, tta=None, overlap=None, blend="gaussian")
    predict_folder(job, use)
    predictor = Predictor.load(options.model, options.folds, device="cpu")
    results = [read_result(path, labels, job.output, predictor.plan.labels) for path in scan_files(scans)]
    table, mix = summarise(results), best_mix(results)
    cost = cpu_cost(job, predictor, options.cpu_scans) if options.cpu_scans else None
    for line in show(table, results, cost):
        print(line)
    if mix is not None:
        weights = ", ".join(f"{name} {weight:g}" for name, weight in mix["weights"].items())
        print(f"the same by the best mix for these very scans: {mix['auroc']:.3f} ({weights})")
    rows = [dataclasses.asdict(each) for each in results]
    record = {"version": 1, "auroc": table, "best_mix": mix, "cpu": cost, "results": rows}
    write_json(record, options.output / "doubt.json")
    return 0


def write_scans(options: Options, scans: Path, labels: Path) -> None:
    """Copies of the clean scans and of disturbed ones, and their labels; of several channels all are disturbed.

    Raises:
        UserError: there is nothing, or a label is missing.
    """
    found = {scan_stem(path): path for path in scan_files(options.labels)}
    images = [path for path in scan_files(options.images) if scan_stem(path) in found][: options.limit]
    if not images:
        raise UserError(f"{options.images} and {options.labels} have no scan and label of one name")
    kinds = [*DISTURBANCES, CLEAN]
    wanted = [(path, CLEAN) for path in images]
    for number in range(options.disturbed):
        turn = number // len(images)
        # In each turn a scan is disturbed in another way.
        kind = kinds[(number + turn) % len(kinds)]
        # The clean ones of the turns are there already.
        wanted += [(images[number % len(images)], kind)] if kind != CLEAN else []
    for path, kind in dict.fromkeys(wanted):
        name = f"{scan_stem(path)}__{kind}.nii.gz"
        if (scans / name).is_file() and (labels / name).is_file():
            continue
        volume, label = read_image([path]), read_label(found[scan_stem(path)])
        # Both are turned alike, so that a flip is one for both.
        rng = np.random.default_rng([options.seed, len(name), *name.encode()])
        change = DISTURBANCES.get(kind, lambda image, rng: image)
        array = np.stack([change(channel, rng) for channel in volume.array]).astype(np.float32)
        mask = label.array[:, ::-1] if kind == "flip" else label.array
        for folder in (scans, labels):
            folder.mkdir(parents=True, exist_ok=True)
        write_volume(labels / name, np.ascontiguousarray(mask).astype(np.uint8), label.geometry)
        write_volume(scans / name, array if len(array) > 1 else array[0], volume.geometry)


def read_result(scan: Path, labels: Path, masks: Path, scheme: LabelScheme) -> Result:
    """Score the mask of a scan, and read what is said of it."""
    case = scan_stem(scan)
    volume = read_label(masks / f"{case}.nii.gz")
    found = class_indices(volume.array, scheme, masks / f"{case}.nii.gz")
    dice = dice_from_counts(score_mask(found, volume.geometry, labels / scan.name, scheme, of=f"its mask {case}"))
    record = read_json(DoubtRecord, masks / f"{case}{DOUBT_ENDING}")
    scores = {"doubt": record.score}
    for name in dict.fromkeys((*MEANS, *SIGNALS)):
        values = [value for each in record.certainties.values() for value in getattr(each, name) if value is not None]
        # Nothing found by anyone: as unsure as can be.
        scores[name] = 1 - (float(np.mean(values)) if values else 0.0)
    kind = case.rpartition("__")[2]
    return Result(
        case=case, kind=kind, dice=float(np.nanmean(dice)), scores=scores, doubtful=record.doubtful,
        remarks=record.remarks,
    )  # fmt: skip


def auroc(bad: Sequence[bool], scores: Sequence[float]) -> float:
    """The share of pairs of a bad and a good one in which the bad one has the higher score; ties count half."""
    wrong, ranks = np.asarray(bad, bool), rankdata(scores)
    positives, negatives = int(wrong.sum()), int((~wrong).sum())
    if not positives or not negatives:
        return math.nan
    return float((ranks[wrong].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def worst_clean(results: Sequence[Result]) -> tuple[list[Result], list[bool]]:
    """The clean scans, and which of them are among the worst."""
    clean = [each for each in results if each.kind == CLEAN]
    worst = sorted(each.dice for each in clean)[max(1, round(WORST_SHARE * len(clean))) - 1]
    return clean, [each.dice <= worst for each in clean]


def best_mix(results: Sequence[Result]) -> dict[str, Any] | None:
    """The weights, of signals brought to one scale, that find the worst clean scans best, and their AUROC.

    They are chosen by the answers, so that this is a mark and no result; None where no clean scan is better than the
    worst ones.
    """
    clean, bad = worst_clean(results)
    if all(bad):
        return None
    columns = np.array([[each.scores[name] for name in SIGNALS] for each in clean])
    columns = (columns - columns.mean(0)) / np.maximum(columns.std(0), 1e-9)
    mixes = [weights for weights in itertools.product(SHARES, repeat=len(SIGNALS)) if any(weights)]
    found = [auroc(bad, columns @ np.array(weights)) for weights in mixes]
    first = int(np.argmax(found))
    return {"auroc": found[first], "weights": dict(zip(SIGNALS, mixes[first], strict=True))}


def summarise(results: Sequence[Result]) -> dict[str, dict[str, float | None]]:
    """Question -> score -> AUROC (None where all or none are bad)."""
    clean = [each for each in results if each.kind == CLEAN]
    disturbed = [each for each in results if each.kind != CLEAN]
    mixed = disturbed + clean[: max(1, len(disturbed) // len(DISTURBANCES))]
    questions = {
        f"Dice < {FAILED_BELOW} of {len(mixed)} disturbed": (mixed, [each.dice < FAILED_BELOW for each in mixed]),
        f"worst decile of {len(clean)} clean": worst_clean(results),
    }
    table: dict[str, dict[str, float | None]] = {}
    for question, (chosen, bad) in questions.items():
        values = {name: auroc(bad, [each.scores[name] for each in chosen]) for name in results[0].scores}
        table[question] = {name: None if math.isnan(value) else value for name, value in values.items()}
    return table


def cpu_cost(job: ScanJob, predictor: Predictor, number: int) -> dict[str, float]:
    """CPU seconds of predicting some scans with and without watching them: of each scan the least of several turns.

    What else the machine does shortens neither; the two follow each other, in changing order.
    """
    scans, doubts = list_scans(job, len(predictor.plan.channels))[:number], Doubts(job.output, predictor)
    least = {watched: [math.inf] * len(scans) for watched in (True, False)}
    for index, scan in enumerate(scans):
        prepared = predictor.prepare(read_image(scan.images))
        for watched in (True, False, False, True) * (REPEATS // 2):
            begin = time.process_time()
            counters = doubts.begin(prepared).counters if watched else ()
            predictor.collect(predictor.stream(prepared, None, counters))
            _ = [counter.result() for counter in counters]
            least[watched][index] = min(least[watched][index], time.process_time() - begin)
    watched_s, plain = map(sum, least.values())
    return {"scans": len(scans), "plain_s": plain, "watched_s": watched_s, "more": watched_s / plain - 1}


def show(
    table: dict[str, dict[str, float | None]], results: Sequence[Result], cost: dict[str, float] | None
) -> list[str]:
    """The tables as lines."""
    names = list(results[0].scores)
    lines = [f"{'AUROC':<34}" + "".join(f"{name:>12}" for name in names)]
    for question, row in table.items():
        cells = ("-" if row[name] is None else f"{row[name]:.3f}" for name in names)
        lines.append(f"{question:<34}" + "".join(f"{cell:>12}" for cell in cells))
    lines.append(f"{'scans':<14}{'number':>8}{'Dice':>8}{'< 0.7':>8}{'doubt':>8}{'doubtful':>10}{'remarked':>10}")
    for kind in (CLEAN, *DISTURBANCES):
        chosen = [each for each in results if each.kind == kind]
        if chosen:
            dice = float(np.median([each.dice for each in chosen]))
            score = float(np.median([each.scores["doubt"] for each in chosen]))
            failed = sum(each.dice < FAILED_BELOW for each in chosen)
            doubtful, remarked = (sum(bool(value) for value in column) for column in zip(
                *((each.doubtful, each.remarks) for each in chosen)
            ))  # fmt: skip
            lines.append(f"{kind:<14}{len(chosen):>8}{dice:>8.3f}{failed:>8}{score:>8.2f}{doubtful:>10}{remarked:>10}")
    if cost is not None:
        seconds = f"{cost['plain_s']:.2f}, watched {cost['watched_s']:.2f} ({cost['more']:+.1%})"
        lines.append(f"CPU s of {cost['scans']} scans: {seconds}")
    return lines


if __name__ == "__main__":
    sys.exit(run_cli(main))
