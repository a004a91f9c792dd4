"""Execute the notebooks: notebooks/NAME.nb.py (jupytext's py:percent) -> NAME.ipynb with outputs.

    python tools/notebooks.py            execute all of them offline, in one temporary folder, and write the .ipynb
    python tools/notebooks.py NAME ...   only these, after those whose output they read
    python tools/notebooks.py --check    only compare the cells of each pair

The suffix is .nb.py, not .py, because `import lrp` would import a file lrp.py beside the notebooks.
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
# A notebook may read files that earlier ones in this order wrote.
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
LARGEST = 500_000  # bytes of a notebook with outputs


def script(name: str) -> Path:
    return FOLDER / f"{name}.nb.py"


def kept(name: str) -> Path:
    return FOLDER / f"{name}.ipynb"


def written(name: str) -> nbformat.NotebookNode:
    """The notebook of a script, without outputs; deterministic."""
    notebook = jupytext.read(script(name), fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{number:02d}"
    return notebook


@contextmanager
def kernel(folder: Path) -> Iterator[KernelManager]:
    """One process for all notebooks, offline and in `folder`: importing torch for each would take most of the time."""
    with tempfile.TemporaryDirectory() as runtime:
        # Unix sockets in our own folder, not TCP ports, to which other processes could connect.
        manager = KernelManager(
            kernel_name="python3", transport="ipc", connection_file=str(Path(runtime, "kernel.json"))
        )
        # The notebooks run in another folder than their own, where they would not find support.py.
        path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(FOLDER))))
        manager.start_kernel(cwd=str(folder), env=os.environ | OFFLINE | {"PYTHONPATH": path})
        try:
            yield manager
        finally:
            manager.shutdown_kernel(now=True)


def execute(
    notebook: nbformat.NotebookNode, manager: KernelManager, timeout: int = 600
) -> nbformat.NotebookNode:
    """Run the cells in an empty namespace, without names of earlier notebooks; raises nbclient's CellExecutionError.

    The result contains nothing that differs between runs or machines: no times, no versions.
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
        # Of two representations of a result keep the HTML, which a page shows.
        if "text/html" in data:
            data.pop("image/png", None)
        # The text alternative of a picture or a table often contains a memory address.
        if len(data) > 1 and "text/plain" in data:
            data["text/plain"] = "(a table)" if "text/html" in data else "(a picture)"
        # Merge streams: the number of pieces in which a text arrives is random.
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
    """The content that both files of a pair must share."""
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
    with tempfile.TemporaryDirectory() as folder, kernel(Path(folder)) as manager:
        for name in NAMES:
            # These two write the table and input/, which others read.
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
