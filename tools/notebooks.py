"""The notebooks: written as notebooks/NAME.nb.py (jupytext's py:percent), kept as NAME.ipynb with outputs.

    python tools/notebooks.py            execute all of them offline, in one temporary folder, and write the .ipynb
    python tools/notebooks.py NAME ...   only these; those they read from come first
    python tools/notebooks.py --check    only compare the cells of each pair

The suffix is .nb.py, and not .py, because a file lrp.py beside the notebooks would be what `import lrp` finds.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jupytext
import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
# In the order in which one reads what another wrote.
NAMES = (
    "accuracy_check_imagenette",
    "accuracy_check_imagewoof",
    "vgg19_evaluation_csv",
    "analysis_confidence_score_original",
    "lrp",
    "vgg_error_analysis_original",
    "vgg19_retrain_imagenette",
    "tour",
)
OFFLINE = {"LRP_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
LARGEST = 500_000  # bytes of a kept notebook


def script(name: str) -> Path:
    return FOLDER / f"{name}.nb.py"


def kept(name: str) -> Path:
    return FOLDER / f"{name}.ipynb"


def written(name: str) -> nbformat.NotebookNode:
    """The notebook as its script has it, without outputs; the same each time."""
    notebook = jupytext.read(script(name), fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{number:02d}"
    return notebook


@contextmanager
def kernel(folder: Path) -> Iterator[KernelManager]:
    """One process for all notebooks, offline and in `folder`: importing torch eight times would take most of the time."""
    with tempfile.TemporaryDirectory() as room:
        # Sockets that are files of ours: no port that another process may look into.
        manager = KernelManager(
            kernel_name="python3", transport="ipc", connection_file=str(Path(room, "kernel.json"))
        )
        # Elsewhere than in their own folder, they would not find support.py.
        path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(FOLDER))))
        manager.start_kernel(cwd=str(folder), env=os.environ | OFFLINE | {"PYTHONPATH": path})
        try:
            yield manager
        finally:
            manager.shutdown_kernel(now=True)


def execute(
    notebook: nbformat.NotebookNode, manager: KernelManager, timeout: int = 600
) -> nbformat.NotebookNode:
    """Run the cells, which find no name that an earlier notebook left; raises nbclient's CellExecutionError.

    Afterwards nothing is in it that another run, or another machine, would write differently: no times, no versions.
    """
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    NotebookClient(notebook, timeout=timeout, km=manager, record_timing=False).execute()
    del notebook.cells[0]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        cell["outputs"] = list(_settled(cell["outputs"], number))
        cell["execution_count"] = number
    notebook.metadata.pop("language_info", None)
    return notebook


def _settled(outputs: list[nbformat.NotebookNode], number: int) -> Iterator[nbformat.NotebookNode]:
    last = None
    for output in outputs:
        if "execution_count" in output:
            output["execution_count"] = number
        data = output.get("data", {})
        # Of two forms of one result, the one that a page shows.
        if "text/html" in data:
            data.pop("image/png", None)
        # What stands for a picture or a page where neither can be shown: often an address in memory.
        if len(data) > 1 and "text/plain" in data:
            data["text/plain"] = "(a table)" if "text/html" in data else "(a picture)"
        # In how many pieces a text arrives is chance.
        if (
            last is not None
            and output.output_type == "stream" == last.output_type
            and output.name == last.name
        ):
            last["text"] += output["text"]
            continue
        last = output
        yield output


def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str, list[str]]]:
    """What both halves of a pair share."""
    return [(c.cell_type, c.source.strip(), c.metadata.get("tags", [])) for c in notebook.cells]


def differing(name: str) -> bool:
    return cells(written(name)) != cells(nbformat.read(kept(name), as_version=4))


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        wrong = [name for name in NAMES if not kept(name).is_file() or differing(name)]
        if wrong:
            print(
                f"the two files differ: {', '.join(wrong)}; `python tools/notebooks.py` writes the .ipynb anew."
            )
        return 1 if wrong else 0
    unknown = [name for name in arguments if name not in NAMES]
    if unknown:
        print(f"no notebook {', '.join(unknown)}: there are {', '.join(NAMES)}.")
        return 2
    with tempfile.TemporaryDirectory() as room, kernel(Path(room)) as manager:
        for name in NAMES:
            # The table and input/ come from an earlier one.
            if arguments and name not in (
                *arguments,
                "vgg19_evaluation_csv",
                "analysis_confidence_score_original",
            ):
                continue
            begun = time.monotonic()
            notebook = execute(written(name), manager)
            if not arguments or name in arguments:
                text = nbformat.writes(notebook) + "\n"
                kept(name).write_text(text, encoding="utf-8")
                print(
                    f"{name}: {time.monotonic() - begun:.0f} s, {len(text.encode()) / 1000:.0f} kB",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
