"""Execute the notebooks and store what they print, so that they can be read where nothing is installed.

python notebooks/execute.py                     (all of them, some minutes)
python notebooks/execute.py brats.ipynb
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
JUPYTER_FOLDERS = ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")


def execute(path: Path, folder: Path) -> NotebookNode:
    """The notebook with the outputs of all cells, run on the CPU, in one thread, in a folder outside of the project.

    Args:
        path: of the notebook, which is only read.
        folder: for Jupyter's files, temporary files (`temporary`) and as the working folder (`elsewhere`).

    Raises:
        CellExecutionError: a cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    for name in ("temporary", "elsewhere"):
        (folder / name).mkdir()
    environment = os.environ | {name: str(folder / "jupyter") for name in JUPYTER_FOLDERS} | {
        "NNUNET_PROJECT": str(HERE.parent), "TMPDIR": str(folder / "temporary"),
        # A spare thread would only wait for the others.
        "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    environment.pop("JPY_SESSION_NAME", None)
    notebook = nbformat.read(path, as_version=4)
    # Without times of execution, which would change with every run; what a cell prints is one text.
    client = NotebookClient(
        notebook, timeout=3600, record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(folder / "elsewhere")}},
    )  # fmt: skip
    client.execute(env=environment)
    return notebook


def main(argv: Sequence[str]) -> int:
    """Replace the named notebooks, or all of this folder, by executed ones."""
    import nbformat

    for path in [HERE / name for name in argv] or sorted(HERE.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(execute(path, Path(folder)), path)
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
