"""A notebook executed in this process, cell by cell: outputs as a kernel would store them, without a kernel's start."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.formatters import DisplayFormatter
from nbformat.v4 import new_output


def execute(notebook: Path, **parameters: Any) -> tuple[Any, dict[str, Any]]:
    """The notebook with its outputs, and the names that its cells left.

    Args:
        parameters: what papermill would put behind the cell tagged `parameters`.
    """
    node = nbformat.read(notebook, as_version=4)
    names: dict[str, Any] = {"__name__": "__main__"}
    show = DisplayFormatter()
    for number, cell in enumerate(cell for cell in node.cells if cell.cell_type == "code"):
        statements = ast.parse(cell.source, f"{notebook.name} cell {number}").body
        last = statements.pop() if statements and isinstance(statements[-1], ast.Expr) else None
        exec(compile(ast.Module(statements, []), f"{notebook.name} cell {number}", "exec"), names)  # our own notebook
        value = (
            eval(compile(ast.Expression(last.value), f"{notebook.name} cell {number}", "eval"), names) if last else None
        )
        if value is not None:
            data, metadata = show.format(value)
            cell.outputs = [new_output("display_data", data=data, metadata=metadata)]
        if "parameters" in cell.metadata.get("tags", []):
            names |= parameters
    return node, names
