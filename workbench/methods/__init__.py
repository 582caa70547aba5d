"""The registry of methods and studies: what is known about each of them without loading it.

A system is a folder in `align/`, `reward/`, `confidence/`, `audit/` or `prompt/`, whose files always have the same
names; no system imports another. `Experiment` (`methods.experiment`) runs one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

SCALES = ("smoke", "tiny", "full")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Method:
    """What the registry knows about one method or study.

    Attributes:
        name: key of the registry; also the file name of its module and its notebook.
        group: folder under `methods/` and `notebooks/` ("" for a study, which lives in `notebooks/` itself).
        n_seeds: seeds that it is published with.
        quick: whether `make reproduce` runs it: the set shows training, judging and ranking at the least cost.
        cost: time of `scale="tiny"` on two cores, for the reader's planning.
    """

    name: str
    title: str
    group: str
    paper: str
    tags: tuple[str, ...]
    n_seeds: int = 5
    quick: bool = False
    cost: str = ""

    @property
    def module(self) -> str:
        return f"workbench.methods.{self.group}.{self.name}" if self.group else f"workbench.studies.{self.name}"

    @property
    def notebook(self) -> Path:
        return Path("notebooks", self.group, f"{self.name}.ipynb")

    @property
    def code(self) -> str:
        """The module whose code, with all that it stands on, is part of a run's key."""
        return f"{self.module}.method" if self.group else self.module

    @property
    def judged_by(self) -> str:
        """Hash of the code that judges results: where it changed, finished runs are judged again without training."""
        from workbench.runs.code import OUTSIDE, code_hash

        judge = f"{self.module}.experiment" if self.group else self.module
        return code_hash(judge, OUTSIDE - {"workbench.claims"})

    def load(self) -> Any:
        return import_module(self.module)


REGISTRY: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "spin",
            "SPIN: self-play fine-tuning",
            "align",
            "arXiv 2401.01335",
            ("self-play", "demonstrations", "iterated"),
            cost="8 min",
        ),
        Method(
            "sppo",
            "SPPO: self-play preference optimisation",
            "align",
            "arXiv 2405.00675",
            ("self-play", "judge", "iterated"),
            cost="6 min",
        ),
        Method(
            "dno",
            "DNO: direct Nash optimisation",
            "align",
            "arXiv 2404.03715",
            ("self-play", "judge", "teacher", "iterated"),
            cost="6 min",
        ),
        Method(
            "dpo",
            "DPO: direct preference optimisation (baseline)",
            "align",
            "arXiv 2305.18290",
            ("preferences", "baseline"),
            quick=True,
            cost="2 min",
        ),
        Method(
            "step_dpo",
            "Step-DPO: preferences on single steps",
            "align",
            "arXiv 2406.18629",
            ("reasoning", "steps", "preferences"),
            cost="8 min",
        ),
        Method(
            "sphere",
            "SPHERE: preference data from a pruned search",
            "align",
            "arXiv 2503.04813",
            ("reasoning", "search", "self-play"),
            cost="8 min",
        ),
        Method(
            "dr_po",
            "DR-PO: dataset reset policy optimisation",
            "align",
            "arXiv 2404.08495",
            ("reinforcement learning", "rewards"),
            cost="8 min",
        ),
        Method(
            "mpo",
            "MPO: mixed preference optimisation",
            "align",
            "arXiv 2403.19443",
            ("preferences", "reinforcement learning"),
            cost="8 min",
        ),
        Method(
            "pro",
            "PRO: preference ranking optimisation",
            "align",
            "arXiv 2306.17492",
            ("rankings", "preferences"),
            cost="3 min",
        ),
        Method(
            "simulpl",
            "SimulPL: listeners' preferences in simultaneous translation",
            "align",
            "arXiv 2502.00634",
            ("translation", "latency", "preferences"),
            cost="8 min",
        ),
        Method(
            "logo",
            "LOGO: long-context alignment on short text",
            "align",
            "arXiv 2410.18533",
            ("long context", "preferences"),
            cost="4 min",
        ),
        Method(
            "longpo",
            "LongPO: short-to-long preference optimisation",
            "align",
            "arXiv 2502.13922",
            ("long context", "self-play", "iterated"),
            cost="6 min",
        ),
        Method(
            "pami_vdpo",
            "PaMi-VDPO: preferences between clips, the answer fixed",
            "align",
            "arXiv 2504.05810",
            ("video", "evidence", "preferences", "online"),
            cost="8 min",
        ),
        Method(
            "flr",
            "FLR: follow-up likelihood as reward",
            "reward",
            "arXiv 2409.13948",
            ("rewards", "feedback"),
            cost="4 min",
        ),
        Method(
            "relative_confidence",
            "Relative confidence from confidence preferences",
            "confidence",
            "arXiv 2502.01126",
            ("confidence", "ranking", "selective classification"),
            n_seeds=20,
            quick=True,
            cost="2 min",
        ),
        Method(
            "time_travel",
            "Time travel: has a model seen this benchmark partition",
            "confidence",
            "arXiv 2308.08493",
            ("contamination", "benchmarks", "memorisation"),
            n_seeds=3,
            cost="8 min",
        ),
        Method(
            "pace_lm",
            "PACE-LM: is the evidence enough, and does it support the proposal",
            "confidence",
            "arXiv 2309.05833",
            ("confidence", "calibration", "retrieval"),
            n_seeds=10,
            cost="1 min",
        ),
        Method(
            "hallucinated_references",
            "Hallucinated references: does a model agree with itself on who wrote it",
            "confidence",
            "arXiv 2305.18248",
            ("confidence", "self-consistency", "references"),
            n_seeds=20,
            cost="3 min",
        ),
        Method(
            "arena",
            "The arena: all alignment methods at one price",
            "",
            "study",
            ("comparison", "alignment", "study"),
            cost="15 min",
        ),
        Method(
            "leaderboard",
            "A leaderboard from raw judge annotations",
            "",
            "arXiv 2404.04475",
            ("judges", "win rate", "study"),
            cost="1 min",
        ),
    )
}


def find(names: Sequence[str]) -> list[Method]:
    """Methods by name or by group ("align"), "studies", or "all"; nothing asked means the quick set.

    Raises:
        ValueError: a name is neither; the known ones are listed.
    """
    if not names:
        return [method for method in REGISTRY.values() if method.quick]
    found: dict[str, Method] = {}
    for name in names:
        matches = {key: m for key, m in REGISTRY.items() if name in (key, m.group or "studies", "all")}
        if not matches:
            groups = sorted({m.group or "studies" for m in REGISTRY.values()})
            raise ValueError(
                f"unknown system {name!r}; known: {', '.join(REGISTRY)}; groups: {', '.join([*groups, 'all'])}"
            )
        found |= matches
    return list(found.values())


def default_seeds(method: Method, scale: str) -> list[int]:
    """As many seeds as it is published with; two at "smoke", where nothing is decided."""
    return list(range(2 if scale == "smoke" else method.n_seeds))


def __getattr__(name: str) -> Any:  # on first use: the driver needs numpy, the registry nothing
    if name in ("Experiment", "Results", "evaluations"):
        return getattr(import_module("workbench.methods.experiment"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
