"""How doubtful a mask is: what its networks' certainty means beside that of the cases of a cross-validation.

In a cross-validation each case is predicted by one network that has not seen it; a new scan by several, none of which
has seen it. So what is compared is each network's own certainty, averaged over those that predict. How far networks
agree has no counterpart there (one network for each case): their Dice with each other is held against the Dice with
the labels that single networks reached. Two networks that agree less with each other than these did with the truth
cannot both be right. What of the scan training never saw is added to both. A score promises no Dice.

Source: the Dice that a mask may expect of calibrated probabilities, as in Li et al., Estimating the Dice of a
segmentation without labels; agreement of ensembles as in Roy et al., Bayesian QuickNAT (2019).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from inference.doubt_weights import LOWEST, equal_weights, own_weights
from inference.input_check import InputReference
from inference.spread import WORST, Spreads, spread_of, spreads_of
from utils.certainty import Certainty, Value
from utils.schema import FORMAT_VERSION, check_version
from utils.stage_plan import UNSAID

CALIBRATION_FILE = "doubt.json"
SIGNALS = {"overlap": 0.45, "settled": 0.45, "size": 0.1}
"""Of `Certainty` -> how much each counts before the cases say anything."""
BEST = {"size": 0.0}
"""How well a signal may speak for a scan at most, where that is not `LOWEST`: a mask that leaks is large."""
FEW_SIGNALS, OLD_SIGNALS = ("overlap", "settled"), ("overlap", "confidence")
"""Those of few cases, and of an earlier version; all alike. Whether small structures are segmented worse differs from
data set to data set, so that `size` needs cases that say so."""
DOUBTFUL_FROM = 1.0
LEAST_OWN_CASES = 8
"""From so many cases on a network is compared with itself."""
FEW_CASES = 20
"""Below this number of cases a decile is one or two of them."""
UNSEEN = 1 / 3
"""What each thing about a scan that training never saw adds to its score: networks may be sure, and agree, where they
know nothing. Chosen by scans of three data sets that were disturbed."""
_SHARES = tuple(share / 20 for share in range(21))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the cross-validation of a configuration says of doubt. Written to `doubt.json`.

    Attributes:
        cases: scored cases that it rests on.
        targets: T names.
        signals: name -> T spreads; None for a target that no case has.
        weights: of the signals, in their order, together 1; empty: all alike.
        dice: T spreads of the Dice with the labels.
        scores: of the cases, from the least to the most doubtful: 21 values at equal steps of 5 %.
        doubtful_dice: mean Dice of the cases that count as doubtful; `other_dice` that of the others. None: no such.
        tta: whether the cases were predicted with flips; `overlap` that of the windows; None where nothing says.
        inputs: what the scans looked like.
        members: network -> signals as above, of the cases that it predicted itself; of those that had enough. Networks
            of one cross-validation differ in how sure they usually are.
    """

    version: int
    configuration: str
    cases: int
    targets: tuple[str, ...]
    signals: dict[str, Spreads]
    dice: Spreads
    scores: tuple[float, ...]
    doubtful_dice: float | None = None
    other_dice: float | None = None
    tta: bool | None = None
    overlap: float | None = None
    inputs: InputReference | None = dataclasses.field(default=None, metadata=UNSAID)
    members: dict[str, dict[str, Spreads]] = dataclasses.field(default_factory=dict, metadata=UNSAID)
    weights: tuple[float, ...] = dataclasses.field(default=(), metadata=UNSAID)

    def __post_init__(self) -> None:
        check_version(self.version, CALIBRATION_FILE)
        lengths = {len(self.targets), len(self.dice)}
        tables = [self.signals, *self.members.values()]
        lengths |= {len(row) for table in tables for row in table.values()}
        if len(lengths) != 1 or len(self.scores) != len(_SHARES):
            raise ValueError(f"{CALIBRATION_FILE} must have one entry per target and {len(_SHARES)} scores")
        known = [set(names) for names in (SIGNALS, FEW_SIGNALS, OLD_SIGNALS)]
        if any(set(table) not in known or set(table) != set(tables[0]) for table in tables):
            raise ValueError(f"{CALIBRATION_FILE} must have the signals {', '.join(SIGNALS)}, in all tables the same")
        if len(self.weights) not in (0, len(self.signals)) or not all(0 < weight <= 1 for weight in self.weights):
            raise ValueError(f"{CALIBRATION_FILE} must have one weight per signal, above 0 and up to 1")

    def certainty_score(self, certainty: Certainty) -> float:
        """Of what single networks say: on the scale of `Spread.badness`, the weighted mean over signals, and then the
        mean over targets and networks.

        Signals that the scan does not have, one of an earlier version, do not count.
        """
        return self.weighted(self.compared(certainty))

    def weighted(self, compared: Sequence[Sequence[Sequence[Value]]]) -> float:
        """The score of what `compared` found."""
        weights = self.weights or equal_weights(len(self.signals))
        found = []
        for targets in compared:
            rows = [[(w, bad) for w, bad in zip(weights, row) if bad is not None] for row in targets]
            each = [sum(w * bad for w, bad in row) / sum(w for w, _ in row) for row in rows if row]
            found.append(float(np.mean(each)) if each else 0.0)
        return float(np.mean(found))

    def compared(self, certainty: Certainty) -> list[list[tuple[Value, ...]]]:
        """Network -> target -> how bad each signal is.

        Each network is compared with itself, unless one of them had too few cases: then the mean of all with all.
        """
        pooled = {name: getattr(certainty, name) for name in self.signals}
        each = certainty.each or ((pooled,) if len(certainty.names) == 1 else ())
        if not each or not set(certainty.names) <= set(self.members):
            return [self._badness(self.signals, pooled)]
        return [self._badness(self.members[name], said) for name, said in zip(certainty.names, each)]

    def _badness(
        self, spreads: Mapping[str, Spreads], said: Mapping[str, tuple[Value, ...]]
    ) -> list[tuple[Value, ...]]:  # fmt: skip
        """Target -> how bad each signal is; None for one that the scan does not have, or that says nothing of it."""
        columns = []
        for name in self.signals:
            values, nothing = said.get(name, ()), [None] * len(self.targets)
            least = BEST.get(name, LOWEST)
            found = [None if spread is None else spread.badness(value) for spread, value in zip(spreads[name], values)]
            columns.append([None if bad is None else max(bad, least) for bad in found] if values else nothing)
        return list(zip(*columns))

    def agreement_score(self, agreement: Sequence[Value]) -> float | None:
        """The same of how far members, or configurations, agree on each target; None where nothing was compared."""
        found = []
        for spread, value in zip(self.dice, agreement):
            bad = None if spread is None or value is None else spread.badness(value)
            found += [] if bad is None else [bad]
        return float(np.mean(found)) if found else None

    def worse_than(self, score: float) -> float:
        """The share of the cross-validation's cases that are less doubtful, in steps of 5 %."""
        return _SHARES[max(int(np.searchsorted(self.scores, score, side="right")) - 1, 0)]

    @property
    def doubtful_from(self) -> float:
        """The score at which the worst decile of the cross-validation begins."""
        return self.scores[_SHARES.index(1 - WORST)]


def calibrate(
    configuration: str,
    targets: Sequence[str],
    cases: Sequence[tuple[Certainty, Sequence[float]]],
    *,
    tta: bool | None = None,
    overlap: float | None = None,
    inputs: InputReference | None = None,
) -> Calibration:
    """The calibration by out-of-fold cases: the certainty of the one network that predicted each, and the Dice of each
    target (NaN where neither mask has it)."""
    dice = np.array([row for _, row in cases], dtype=float)
    by_network: dict[str, list[Certainty]] = {}
    for each, _ in cases:
        if len(each.names) == 1:
            by_network.setdefault(each.names[0], []).append(each)
    signals: Sequence[str] = FEW_SIGNALS if len(cases) < FEW_CASES else tuple(SIGNALS)
    signals = signals if all(each.settled for each, _ in cases) else OLD_SIGNALS
    known = [[None if np.isnan(value) else float(value) for value in column] for column in dice.T]
    first = Calibration(
        version=FORMAT_VERSION, configuration=configuration, cases=len(cases), targets=tuple(targets),
        signals=spreads_of([each for each, _ in cases], signals, len(targets)),
        dice=tuple(spread_of(column) for column in known), scores=(0.0,) * len(_SHARES), tta=tta, overlap=overlap,
        inputs=inputs,
        members={
            name: spreads_of(own, signals, len(targets))
            for name, own in by_network.items() if len(own) >= LEAST_OWN_CASES
        },
    )  # fmt: skip
    compared = [first.compared(each) for each, _ in cases]
    if signals == tuple(SIGNALS):
        wanted = [
            [
                None if spread is None or value is None else spread.badness(value)
                for spread, value in zip(first.dice, row)
            ]
            for row in zip(*known)
        ]
        # One network predicted each case.
        first = dataclasses.replace(
            first, weights=own_weights([t for (t,) in compared], wanted, tuple(SIGNALS.values()))
        )
    scores = np.array([first.weighted(each) for each in compared])
    ladder = np.quantile(scores, _SHARES)
    means = np.array([np.nanmean(row) if np.isfinite(row).any() else np.nan for row in dice])
    doubtful = scores >= ladder[_SHARES.index(1 - WORST)]
    return dataclasses.replace(
        first, scores=tuple(ladder.tolist()), doubtful_dice=_mean(means[doubtful]), other_dice=_mean(means[~doubtful])
    )


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doubt:
    """Of a scan: a score, and what it means in words.

    Attributes:
        score: with a calibration 0 is the median of the cross-validation and 1 is where its worst decile begins, and
            `UNSEEN` is added for each thing that training never saw; without, from 0 (all sure, all agree) to 1.
        calibrated: which of the two.
        doubtful: from 1 on; None without a calibration.
        words: for people.
    """

    score: float
    calibrated: bool
    doubtful: bool | None
    words: str


def judge(
    certainties: Mapping[str, Certainty], calibrations: Mapping[str, Calibration], between: Sequence[Value] = (),
    *, unseen: int = 0,
) -> Doubt:  # fmt: skip
    """The doubt of a scan that some configurations predicted together.

    Args:
        certainties: configuration -> what its members say.
        calibrations: of those that have one; if one lacks it there is no verdict.
        between: how far configurations agree with each other on each target; empty where nothing says.
        unseen: number of things about the scan that training never saw.
    """
    if not set(certainties) <= set(calibrations):
        disagreement = [1 - value for value in between if value is not None]
        score = float(np.mean([_plain(each) for each in certainties.values()]))
        score = max(score, float(np.mean(disagreement)) if disagreement else 0.0)
        words = "no verdict: the model has no cross-validation to compare with"
        return Doubt(score=score, calibrated=False, doubtful=None, words=words)
    parts, cases, shares, reasons = [], [], [], []
    for name, certainty in certainties.items():
        calibration = calibrations[name]
        own = calibration.certainty_score(certainty)
        # On a scale on which the worst decile of the scores themselves begins at 1.
        own_scaled = own / calibration.doubtful_from if calibration.doubtful_from > 0 else own
        agreement = calibration.agreement_score(certainty.agreement)
        parts.append(own_scaled if agreement is None else max(own_scaled, agreement))
        shares.append(calibration.worse_than(own))
        cases.append(calibration.cases)
        reasons += ["members disagree"] if agreement is not None and agreement > max(own_scaled, DOUBTFUL_FROM) else []
    score, few = float(np.mean(parts)), min(cases)
    apart = [
        value for value in (calibrations[name].agreement_score(between) for name in certainties) if value is not None
    ]
    if apart and np.mean(apart) > score:
        score = float(np.mean(apart))
        reasons += ["configurations disagree"]
    if unseen:
        score, before = score + UNSEEN * unseen, score
        what = "something" if unseen == 1 else f"{unseen} things"
        reasons += [f"{what} that training never saw"] if before < DOUBTFUL_FROM <= score else []
    doubtful = score >= DOUBTFUL_FROM
    words = f"less sure than {np.mean(shares):.0%} of {few} cases of the cross-validation"
    words = f"doubtful: {', '.join([words, *dict.fromkeys(reasons)])}" if doubtful else words
    words += f"; {few} cases are few" if few < FEW_CASES else ""
    return Doubt(score=score, calibrated=True, doubtful=doubtful, words=words)


def _plain(certainty: Certainty) -> float:
    """1 less the mean of all signals; a scan in which nothing was found is wholly doubtful."""
    values = [*certainty.overlap, *certainty.agreement]
    known = [value for value in values if value is not None]
    return 1 - float(np.mean(known)) if known else 1.0
