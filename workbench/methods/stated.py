"""Claims whose texts stand in a table: what is claimed is read in one place, the numbers that test it in another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workbench.claims import Claims


class Stated(Claims):
    """The claims of one run, with statements and papers from a table.

    Args:
        texts: id -> (statement, what the paper gives); "C4 sampled" takes those of "C4" where it has none of its own
        needs: id -> what is missing to test it here; these claims need full scale
        simulated: a simulated model shows that a pipeline works in small, whatever its size: "full" is for real models
        seeds: those that claims are measured with; None for all of the experiment's
    """

    def __init__(
        self,
        system: str,
        experiment: Any,
        texts: Mapping[str, tuple[str, str]],
        needs: Mapping[str, str] | None = None,
        *,
        simulated: bool = False,
        seeds: Sequence[int] | None = None,
    ):
        scale = "tiny" if simulated and experiment.scale == "full" else experiment.scale
        super().__init__(system, scale, experiment.seeds if seeds is None else seeds)
        self.texts = texts
        for id, why in (needs or {}).items():
            self.needs([id], why)

    def add(
        self, id: str, both: Iterable[Any], control_is: str = "", unit: str = "", *, statement="", **options: Any
    ) -> None:
        """`test` with the texts of the table, or another statement; `both`: what is measured, and its control."""
        measured, control = both
        words = id.split()
        told, paper = next(
            self.texts[known] for n in range(len(words), 0, -1) if (known := " ".join(words[:n])) in self.texts
        )
        numbers = {"measured": measured, "control": control, "control_is": control_is, "unit": unit}
        self.test(id, statement or told, paper=paper, **numbers, **options)

    def needs(self, ids: Iterable[str], why: str) -> None:
        """These claims need full scale, for one reason."""
        for id in ids:
            self.needs_full_scale(id, *self.texts[id], why=why)
