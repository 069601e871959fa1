"""Executes the notebooks of this folder and, with --write, keeps their outputs: `make notebooks`.

    python examples/notebooks/execute.py [--write] [NOTEBOOK ...]

LAM_MODEL (environment) names another model than LAM-base-v1.
"""

import argparse
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def execute(path: Path, timeout: int = 600) -> nbformat.NotebookNode:
    """The notebook at `path` with its outputs, executed in the folder where it is.

    Args:
        path: of the notebook, which stays as it is.
        timeout: seconds that a cell may take.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell raises an exception.
    """
    notebook = nbformat.read(path, as_version=4)
    # Without the times of execution, which would change the file whenever it is executed.
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    # tqdm warns where there are no widgets; nothing here shows one.
    client.execute(env={**os.environ, "PYTHONWARNINGS": "ignore:IProgress not found"})
    # The version of Python belongs to the machine that executed the notebook.
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the outputs into the notebooks")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of this folder")
    arguments = parser.parse_args()
    for path in arguments.notebooks or sorted(FOLDER.glob("*.ipynb")):
        notebook = execute(path)
        if arguments.write:
            nbformat.write(notebook, path)
        print(f"{path.name}: {sum(cell.cell_type == 'code' for cell in notebook.cells)} cells executed")


if __name__ == "__main__":
    main()
