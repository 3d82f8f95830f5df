"""Run the notebooks from their .py files: ``python notebooks/run.py`` (or ``make notebooks``).

Each .py becomes an executed .ipynb beside it. Of a progress bar only its last state is kept.
"""

import os
import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent


def main() -> None:
    """Execute the notebooks named on the command line, or all of them."""
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # plain text does without widgets
    for path in [Path(a) for a in sys.argv[1:]] or sorted(HERE.glob("[0-9]*.py")):
        notebook = jupytext.read(path)
        client = NotebookClient(notebook, kernel_name="python3", coalesce_streams=True)
        client.execute(cwd=str(path.parent))
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{number}"
            cell.get("metadata", {}).pop("execution", None)  # when it ran is not of interest
            for output in cell.get("outputs", []):
                _overwrite(output)
        nbformat.write(notebook, path.with_suffix(".ipynb"))
        print(f"{path.with_suffix('.ipynb')}: {len(notebook.cells)} cells")


def _overwrite(output: NotebookNode) -> None:
    """Let carriage returns do what a terminal does."""
    if output.output_type == "stream":
        output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)


if __name__ == "__main__":
    main()
