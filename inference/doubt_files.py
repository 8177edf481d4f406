"""Doubt on its way to files: while a scan is predicted, `<case>.doubt.json` beside its mask, `doubt.csv` of all."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.restoration import without_padding
from inference.configuration_agreement import ConfigurationAgreement
from inference.doubt import Calibration, judge
from inference.input_check import check_scan, check_sides, look_at, side_values
from inference.mask_formats import mask_files
from inference.model import configuration_name
from inference.predictor import Predictor
from inference.preparing import PreparedScan
from models.certainty import CertaintyCounter
from utils.certainty import DOUBT_ENDING, DOUBT_TABLE, Certainty, DoubtRecord, Value
from utils.errors import UserError
from utils.files import read_json, write_atomically, write_json
from utils.nifti import working_grid
from utils.schema import FORMAT_VERSION

MEANS = ("overlap", "confidence", "settled", "agreement")
COLUMNS = ("case", "doubt", "doubtful", *MEANS, "words", "remarks")
EDITED = "the mask was edited since it was predicted; the prediction was"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Watch:
    """Of a scan that is being predicted: what was noticed when it was read, a counter for each configuration, and what
    compares several that are averaged."""

    remarks: tuple[str, ...]
    counters: tuple[CertaintyCounter, ...]
    agreement: ConfigurationAgreement | None = None


class Doubts:
    """Doubt of the scans that a predictor predicts into a folder.

    Args:
        folder: of the masks.
        predictor: what predicts.
    """

    def __init__(self, folder: Path, predictor: Predictor) -> None:
        self.folder, self.plan, self.labels = folder, predictor.plan, predictor.plan.labels
        self._ensembles = [each.ensemble for each in predictor.configurations]
        self._merged, self._averaged = predictor.merge is not None, predictor.adds_up
        names = [configuration_name(each.plan) for each in predictor.configurations]
        # A set of models has several of one name.
        self.names = [
            name if names.count(name) == 1 else f"{name} {number}" for number, name in enumerate(names, start=1)
        ]
        found = [each.configuration.calibration for each in predictor.configurations]
        self.calibrations: dict[str, Calibration] = {
            name: calibration for name, calibration in zip(self.names, found) if calibration is not None
        }
        self._inputs = None if found[0] is None else found[0].inputs
        self.warnings = self._other_settings(predictor)

    def _other_settings(self, predictor: Predictor) -> list[str]:
        """Where new scans are predicted otherwise than those of the cross-validation, whose scores mean less then."""
        found = []
        for name, each in zip(self.names, predictor.configurations):
            known, now = self.calibrations.get(name), each.settings
            if known is not None and (known.tta, known.overlap) not in ((now.tta, now.overlap), (None, None)):
                found.append(
                    f"doubt is compared with a cross-validation with --tta {'on' if known.tta else 'off'} and "
                    f"--overlap {known.overlap}; this is another setting, so the verdicts are rougher"
                )
        return list(dict.fromkeys(found))

    def begin(self, prepared: Sequence[PreparedScan]) -> Watch:
        """Look at a scan that has been prepared."""
        look = look_at(prepared[0].image, prepared[0].meta, self.plan)
        counters = tuple(
            CertaintyCounter(each.labels, len(each.networks), each.names, without_padding(scan.meta))
            for each, scan in zip(self._ensembles, prepared)
        )
        between = ConfigurationAgreement(self.labels, len(counters)) if self._averaged else None
        return Watch(remarks=tuple(check_scan(look, self.plan, self._inputs)), counters=counters, agreement=between)

    def say(self, case: str, watch: Watch, mask: np.ndarray, prepared: Sequence[PreparedScan]) -> DoubtRecord:
        """What is said of a scan, once all its planes have passed; `mask` (S, A, R) holds values of files."""
        remarks = list(watch.remarks)
        if self._inputs is not None and not self._merged:
            values = np.zeros(256, np.uint8)
            values[list(self.labels.values)] = np.arange(self.labels.num_classes)
            geometry = prepared[0].geometry
            _, spacing_mm = working_grid(geometry.shape_xyz, np.array(geometry.affine))
            remarks += check_sides(side_values(values[mask], spacing_mm, self.labels), self._inputs)
        certainties = {name: counter.result() for name, counter in zip(self.names, watch.counters)}
        between = () if watch.agreement is None else watch.agreement.result()
        return self.record(case, certainties, remarks, between)

    def record(
        self, case: str, certainties: dict[str, Certainty], remarks: Sequence[str], between: tuple[Value, ...] = ()
    ) -> DoubtRecord:
        """What is said of a scan; see `inference.doubt.judge`."""
        doubt = judge(certainties, self.calibrations, between, unseen=len(remarks))
        return DoubtRecord(
            version=FORMAT_VERSION, case=case, remarks=tuple(remarks), targets=self.labels.target_names,
            certainties=certainties, between=between, **dataclasses.asdict(doubt),
        )  # fmt: skip

    def finish(
        self, cases: Iterable[str], edited: Collection[str] = (), *, table: bool = True
    ) -> list[DoubtRecord]:  # fmt: skip
        """Return the records of the cases that have one, the most doubtful first; the table has all of the folder.

        Records of scans that were predicted before are judged again, by what the model's calibration is now; those of
        further scans, which lie there from other runs, are left as they are.

        Args:
            cases: those of this run.
            edited: of which the mask is no longer the one that was predicted: there is no verdict on it.
        """
        records = []
        for case in cases:
            old = self._read(case)
            if old is None:
                continue
            new = self.record(case, old.certainties, old.remarks, old.between)
            if case in edited:
                new = dataclasses.replace(new, doubtful=None, words=f"{EDITED}: {new.words}")
            if new != old:
                write_json(new, self.path(case))
            records.append(new)
        records.sort(key=lambda record: record.rank)
        if records and table:
            # Of masks that are there; a file of which the mask was taken away says nothing.
            masks = {case for case, _ in mask_files(self.folder)}
            others = map(self._read, sorted(masks - {record.case for record in records}))
            there = [*records, *(record for record in others if record is not None)]
            content = table_text(sorted(there, key=lambda record: record.rank)).encode()
            write_atomically(self.folder / DOUBT_TABLE, lambda file: file.write(content))
        return records

    def _read(self, case: str) -> DoubtRecord | None:
        """None where there is none, or one of another version or damaged; the mask counts all the same."""
        try:
            return read_json(DoubtRecord, self.path(case)) if self.path(case).is_file() else None
        except UserError:
            return None

    def path(self, case: str) -> Path:
        """The file of a case."""
        return self.folder / f"{case}{DOUBT_ENDING}"


def table_text(records: Sequence[DoubtRecord]) -> str:
    """A line for each scan, with means over configurations and targets."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        means = [
            _mean([value for each in record.certainties.values() for value in getattr(each, name)]) for name in MEANS
        ]
        verdict = {None: "", True: "yes", False: "no"}[record.doubtful]
        shown = ["" if value is None else f"{value:.4f}" for value in means]
        writer.writerow([record.case, f"{record.score:.3f}", verdict, *shown, record.words, "; ".join(record.remarks)])
    return text.getvalue()


def summary_line(records: Sequence[DoubtRecord]) -> str:
    """How many are doubtful, in a sentence."""
    remarked = sum(bool(record.remarks) for record in records)
    unlike = f"; {remarked} with something that training never saw" if remarked else ""
    verdicts = [record.doubtful for record in records if record.doubtful is not None]
    if not verdicts and records and all(record.calibrated for record in records):
        return f"doubt: no verdict on masks that were edited since they were predicted{unlike}: {DOUBT_TABLE}"
    if not verdicts:
        return f"doubt: scores without a verdict, there is no cross-validation to compare with{unlike}: {DOUBT_TABLE}"
    return f"doubt: {sum(verdicts)} of {len(verdicts)} scans are doubtful{unlike}: {DOUBT_TABLE}"


def _mean(values: Sequence[Value]) -> Value:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
