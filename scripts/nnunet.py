"""One command for everything: nnunet <verb>, from any folder.

nnunet preprocess --task 04 --dim 3
nnunet train --task 04 --dim 3 --fold 0 --amp
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.errors import EXIT_OK, EXIT_USAGE, run_cli
from utils.program import called_as, program_version


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb and what it runs: `main(argv)` of a module, which is imported when the verb is used."""

    name: str
    module: str
    help: str
    options: str
    """Class of its options, in the module or (`package.module:Class`) in another one."""
    words: tuple[str, ...] = ()
    """Flags that the verb stands for; flags of the user come after them and win."""

    @property
    def script(self) -> str:
        """The same without an installation: `main.py --exec_mode train`."""
        return " ".join([f"{self.module.replace('.', '/')}.py", *self.words])


def _verb(name: str, module: str, options: str, text: str, words: tuple[str, ...] = ()) -> Verb:
    return Verb(name=name, module=module, options=options, help=text, words=words)


MAIN = "utils.args:Config"
GROUPS: dict[str, tuple[Verb, ...]] = {
    "data": (
        _verb("download", "download", "DownloadOptions", "fetch a task of the Decathlon, or write a generated one"),
        _verb("init-dataset", "scripts.init_dataset", "InitOptions", "make a data set of folders of images and labels"),
        _verb("verify-dataset", "scripts.verify_dataset", "VerifyOptions", "list all faults of a data set; repair it"),
        _verb("preprocess", "preprocess", "Options", "check and plan a data set, write training-ready arrays"),
    ),
    "training": (
        _verb("train", "main", MAIN, "train one fold", ("--exec_mode", "train")),
        _verb("evaluate-model", "main", MAIN, "score a checkpoint on its fold's validation cases",
              ("--exec_mode", "evaluate")),
        _verb("cross-validate", "scripts.cross_validate", "CrossValidateOptions",
              "train all folds of several configurations"),
        _verb("find-best", "scripts.find_best_configuration", "BestOptions",
              "choose configuration or ensemble, and post-processing"),
        _verb("audit-labels", "scripts.audit_labels", "AuditOptions",
              "rank labels that the predictions of unseen cases contradict"),
        _verb("export-model", "scripts.export_model", "ExportOptions", "put a trained model into one zip"),
        _verb("fetch-model", "scripts.fetch_model", "FetchOptions", "bring an exported model into the cache, checked"),
        _verb("info", "scripts.info", "InfoOptions", "say what a model is: data, structures, Dice, licence"),
        _verb("import-model", "scripts.import_model", "ImportOptions", "turn a model of nnU-Net v2 into one zip"),
    ),
    "prediction": (
        _verb("predict", "scripts.inference", "InferenceOptions", "predict masks of scans with a trained model"),
        _verb("evaluate", "evaluate", "EvaluateConfig", "score masks against labels: Dice, HD95, surface Dice"),
        _verb("overlay", "scripts.overlay", "OverlayOptions", "draw a mask on top of its scan"),
        _verb("serve", "scripts.serve", "ServeOptions", "answer scans with masks over HTTP, with a page"),
        _verb("report", "scripts.report", "ReportOptions", "write one HTML page about a result, with a viewer"),
    ),
    "machine": (
        _verb("doctor", "scripts.doctor", "DoctorOptions", "say what this machine can do, and check that it works"),
        _verb("gpu-check", "scripts.gpu_check", "GpuCheckOptions", "compare the GPU with the CPU: numbers and speed"),
        _verb("benchmark", "scripts.benchmark", "BenchmarkOptions", "measure speed, memory and growth of each stage"),
        _verb("compare-peers", "scripts.compare_peers", "CompareOptions", "measure the same work by other programs"),
    ),
}  # fmt: skip
VERBS = {verb.name: verb for verbs in GROUPS.values() for verb in verbs}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit status (2: there is no such verb)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return EXIT_OK if words else EXIT_USAGE
    if words[0] in ("-V", "--version", "version"):
        print(f"nnunet {version_line()}")
        return EXIT_OK
    name = words[0].replace("_", "-").lower()
    if name not in VERBS:
        print(unknown_verb(words[0]), file=sys.stderr)
        return EXIT_USAGE
    verb = VERBS[name]
    with called_as(f"nnunet {name}", verb.words):
        return importlib.import_module(verb.module).main([*verb.words, *words[1:]]) or EXIT_OK


def overview() -> str:
    """The verbs with a line each."""
    width = max(map(len, VERBS))
    lines = ["usage: nnunet VERB [FLAGS]        (nnunet VERB --help: the flags; nnunet --version)"]
    for title, verbs in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {verb.name:{width}}  {verb.help}" for verb in verbs)]
    return "\n".join(
        [*lines, "", "Start: nnunet doctor, then nnunet download --task 00. Docs: docs/getting-started.md"]
    )


def unknown_verb(word: str) -> str:
    """The message for a verb that does not exist, with names that are near it."""
    name = word.replace("_", "-").lower()
    near = [known for known in VERBS if known in name or (len(name) > 2 and name in known)]
    near += [known for known in difflib.get_close_matches(name, VERBS, cutoff=0.5) if known not in near]
    advice = f"did you mean: {', '.join(near)}?" if near else f"verbs: {', '.join(VERBS)}"
    return f"error: nnunet has no verb {word!r}; {advice} (see nnunet --help)"


def version_line() -> str:
    """Version, and the commit where the program runs from a git checkout."""
    from utils.throughput import environment

    commit = environment()["commit"]
    return program_version() + (f" (commit {commit})" if commit else "")


def main_cli() -> None:
    """Entry point of the installed command."""
    sys.exit(run_cli(main))


if __name__ == "__main__":
    main_cli()
