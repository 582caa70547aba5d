"""Results of the benchmarks: tables, plots and files, and what their figures depend on."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures depend on beside the code."""
    name = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    if device == "cuda":
        import torch

        name = torch.cuda.get_device_name(0)
    facts: dict[str, Any] = {
        "machine": name,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "threads": 1,
        "dtype": "float32",
        "device": device,
        "python": platform.python_version(),
    }
    for package in ("torch", "transformers", "trl", "choix", "numpy", "scipy"):
        with suppress(metadata.PackageNotFoundError):
            facts[package] = metadata.version(package)
    return facts


def spread(values: Sequence[float]) -> str:
    """Median and range over the rounds."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line a row; the columns are the keys of the first row."""
    columns = list(rows[0])
    cells = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    sys.stdout.flush()


def write(name: str, rows: Sequence[Mapping[str, Any]], given: argparse.Namespace, title: str, axis: str) -> None:
    """Writes `bench-NAME.json` and, from its rows with a `ratio`, `bench-NAME.svg`.

    Args:
        rows: `case`, `side`, and where there is one `ratio`, a list with one number a round; `must` is drawn as a tick.
        title, axis: of the plot.
    """
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / f"bench-{name}.json"
    facts = json.dumps({"size": given.size, **machine(given.device)})
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f'{{"facts": {facts}, "rows": [\n{lines}\n]}}\n')
    print(f"results: {path}")
    drawn = [row for row in rows if row.get("ratio")]
    if given.size == "smoke" or not drawn:
        return
    try:
        _plot(drawn, title, axis).write_image(path.with_suffix(".svg"))
        print(f"plot: {path.with_suffix('.svg')}")
    except Exception as error:  # kaleido raises its own kinds where no browser is found
        print(f"no plot ({type(error).__name__}): plots need kaleido and a chromium on this machine")


def _plot(rows: Sequence[Mapping[str, Any]], title: str, axis: str) -> Any:
    from workbench import figures

    figure = figures.blank(title, axis, "", height=170 + 34 * len({row["case"] for row in rows}), width=900)
    sides = dict.fromkeys(row["side"] for row in rows)
    for side, colour in zip(sides, ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"), strict=False):
        part = [row for row in rows if row["side"] == side]
        low, middle, high = zip(*((min(r["ratio"]), median(r["ratio"]), max(r["ratio"])) for r in part), strict=True)
        spread = {"array": np.subtract(high, middle), "arrayminus": np.subtract(middle, low), "thickness": 1}
        figure.add_scatter(
            x=middle,
            y=[row["case"] for row in part],
            mode="markers",
            name=side,
            marker={"size": 9, "color": colour},
            error_x=spread,
        )
        goals = [row for row in part if row.get("must")]
        figure.add_scatter(
            x=[row["must"] for row in goals],
            y=[row["case"] for row in goals],
            mode="markers",
            name=f"{side}: to reach",
            marker={"symbol": "line-ns-open", "size": 14, "color": colour, "line": {"width": 2}},
            showlegend=bool(goals),
        )
    figure.add_vline(x=1, line={"color": "#444", "width": 1})
    figure.update_xaxes(type="log", tickvals=[0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16])
    figure.update_yaxes(autorange="reversed")
    return figure
