"""Doctor: what this machine has, which routes the kernels take on it, and a self-test in seconds.

Checks come one by one, so that whoever prints them is never silent for long.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench import runs
from workbench.runs.named_models import NAMED, models_folder

ROOT = runs.PACKAGE.parent  # the checkout, where there is one
FREE_GIB = 2.0  # a page is about 5 MB, a full-size checkpoint more than this
KERNEL_S = 10.0  # for a kernel to start and to answer
TOLERANCE = 1e-5  # between routes, nats a token, float32
PINNED = "install the pinned versions, pip install -c constraints.txt -e '.[dev]', then run `make test`"
EXTRAS = {
    "lab": "JupyterLab, and figures as png",
    "serve": "models behind any OpenAI-compatible server",
    "retrieval": "real encoders for retrieved references",
    "ray": "batches on a cluster: workbench reproduce --executor ray",
    "bench": "the peers of benchmarks/",
}


@dataclass(frozen=True)
class Check:
    """One finding; where it is not fine, `remedy` says in one line what to do, and `needed` whether that is broken."""

    name: str
    fine: bool
    found: str
    remedy: str = ""
    needed: bool = True

    @property
    def mark(self) -> str:
        return "ok" if self.fine else "WRONG" if self.needed else "none"

    def record(self) -> dict[str, Any]:
        """The same as JSON types."""
        return {**asdict(self), "mark": self.mark}


def examine() -> Iterator[Check]:
    """Looks at Python, packages, Jupyter, GPU, disk and kernels' routes; computes next to nothing."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", sys.version_info >= (3, 11), python, "make the environment with Python 3.11 or newer")
    wrong, lists = wrong_pins(ROOT / "constraints.txt"), (ROOT / "constraints.txt").is_file()
    fine = "as pinned" if lists else "no constraints.txt beside the package: versions not compared"
    yield Check("packages", not wrong, "; ".join(wrong) or fine, "pip install -c constraints.txt -e '.[dev]'")
    yield from _extras()
    yield _kernelspec()
    yield _views()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
    remedy = "only browser tests and png export need it: install chromium with the system's packages"
    yield Check("browser", bool(browser), browser or "no chromium", remedy, needed=False)
    root = runs.default_root()
    yield _runs_folder(root)
    free_gib = shutil.disk_usage(next(path for path in (root, *root.parents) if path.is_dir())).free / 2**30
    remedy = f"free {FREE_GIB:g} GiB, or set WORKBENCH_RUNS to a folder on another disk"
    yield Check("disk", free_gib > FREE_GIB, f"{free_gib:.0f} GiB free for {root}", remedy)
    yield _named_models()
    yield _gpu()
    yield from _routes()


# ---------------------------------------------------------------------------------------------------------- packages
def wrong_pins(constraints: Path) -> list[str]:
    """Pinned packages that are installed in another version; what is not installed is an extra nobody asked for."""
    text = constraints.read_text(encoding="utf-8") if constraints.is_file() else ""
    pins = [(name, _version(name), pin) for name, pin in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", text, re.M)]
    # 2.13.0+cpu is torch 2.13.0 for a CPU
    wrong = [(name, there, pin) for name, there, pin in pins if there and there.split("+")[0] != pin.split("+")[0]]
    return [f"{name} {installed}, pinned {pin}" for name, installed, pin in wrong]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _extras() -> Iterator[Check]:
    """The optional parts of the installation and what each is for."""
    for extra, purpose in EXTRAS.items():
        pattern = re.compile(rf"([A-Za-z0-9._-]+).*extra == ['\"]{extra}['\"]")
        names = [match[1] for line in importlib.metadata.requires("workbench") or () if (match := pattern.match(line))]
        have, lack = [name for name in names if _version(name)], [name for name in names if not _version(name)]
        found = ", ".join(f"{name} {_version(name)}" for name in have) or "not installed"
        missing = f"; without {', '.join(lack)}" if have and lack else ""
        remedy = f"for {purpose}: pip install -c constraints.txt -e '.[{extra}]'"
        yield Check(f"extra {extra}", not lack, f"{found}{missing} ({purpose})", remedy, needed=False)


# ----------------------------------------------------------------------------------------------------------- Jupyter
def _kernelspec() -> Check:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    remedy = f"{sys.executable} -m ipykernel install --sys-prefix --name python3"
    try:
        launcher = Path(KernelSpecManager().get_kernel_spec("python3").argv[0])
    except NoSuchKernel:
        return Check("kernel", False, "no kernel named python3", remedy)
    # a bare "python" stands for this interpreter; a path left over from another environment does not
    fine = not launcher.is_absolute() or launcher.resolve() == Path(sys.executable).resolve()
    return Check("kernel", fine, f"python3 starts {launcher}", remedy)


def _views() -> Check:
    """JupyterLab with what draws widgets in it; without it live views stay blank."""
    from jupyter_core.paths import jupyter_path

    lab = _version("jupyterlab")
    if not lab:
        remedy = "only live views need it: pip install -c constraints.txt -e '.[lab]'"
        return Check("views", False, "no JupyterLab", remedy, needed=False)
    wanted = {"anywidget": "anywidget", "ipywidgets": "@jupyter-widgets/jupyterlab-manager"}
    folders = [Path(folder) for folder in jupyter_path("labextensions")]
    lack = [name for name, path in wanted.items() if not any((folder / path).is_dir() for folder in folders)]
    found = f"JupyterLab {lab}" + (f" without the extension of {', '.join(lack)}" if lack else " draws widgets")
    remedy = "pip install --force-reinstall -c constraints.txt anywidget jupyterlab-widgets"
    return Check("views", not lack, found, remedy)


# -------------------------------------------------------------------------------------------------------------- disk
def _runs_folder(root: Path) -> Check:
    """Whether runs can be kept: a file appears by renaming, and a second process is locked out."""
    remedy = "set WORKBENCH_RUNS to a folder that you may write, on a disk with file locks"
    probe = root / f".doctor-{os.getpid()}"
    trouble = ""
    try:
        runs.write_json(probe / "x.json", {"old": 1})
        runs.write_json(probe / "x.json", {"new": 2})
        if runs.read_json(probe / "x.json") != {"new": 2} or os.listdir(probe) != ["x.json"]:
            trouble = "a renamed file is not what was written"
        with runs.Run(probe).locked(), suppress(RuntimeError), runs.Run(probe).locked():
            trouble = trouble or "two writers are not kept apart"
    except OSError as error:
        trouble = error.strerror or str(error)
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    fine = "is writable, files appear whole, one writer at a time"
    return Check("runs folder", not trouble, f"{root}: {trouble}" if trouble else f"{root} {fine}", remedy)


# --------------------------------------------------------------------------------------------------------------- GPU
def _named_models() -> Check:
    folder = models_folder()
    here = [name for name in NAMED if (folder / name).is_dir()]
    size = sum(item.stat().st_size for item in folder.rglob("*") if item.is_file()) if here else 0
    found = f"{', '.join(here)}: {size / 1e6:,.0f} MB in {folder}" if here else f"none in {folder}"
    remedy = "real small models are fetched by workbench get-model NAME; `--clear` deletes them"
    return Check("named models", bool(here), found, remedy, needed=False)


def _gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        facts = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        found = [f"{f.name}, {f.total_memory / 2**30:.0f} GiB, capability {f.major}.{f.minor}" for f in facts]
        total = float((torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")).sum())
        remedy = "the GPU computes wrong numbers: look at the driver with nvidia-smi, or use --device cpu"
        return Check("gpu", total == 64.0**3, "; ".join(found), remedy)
    remedy = "not needed at scale tiny"
    if shutil.which("nvidia-smi"):
        remedy = "nvidia-smi is there: install a torch built for CUDA, and a driver that is new enough for it"
    return Check("gpu", False, f"torch {torch.__version__} sees none", remedy, needed=False)


# ------------------------------------------------------------------------------------------------------------ routes
def _routes() -> Iterator[Check]:
    """What the kernels do with a small policy on each device of this machine."""
    import torch

    from workbench.kernels import Group
    from workbench.kernels.gpu_heads import head_kernel
    from workbench.kernels.sampling import ENGINES
    from workbench.kernels.scoring import route_taken

    short, long = Group([1] * 8, [[2] * 8] * 2), Group([1] * 256, [[2] * 16] * 4)
    shapes = {"2 short responses": short, "4 behind a long prompt": long}
    names = {"padded": "padded (sdpa)", "flex": "shared (flex attention)"}
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model = small_llama().to(device, dtype)
        weight: Any = model.lm_head.weight
        try:
            kernel = head_kernel(weight, None)
        except ValueError as error:
            yield Check(f"head on {device}", False, str(error), "unset WORKBENCH_HEAD")
            continue
        yield Check(f"head on {device}", True, "torch, in chunks" if kernel == "torch" else kernel)
        taken = {shape: route_taken(model, [group]) for shape, group in shapes.items()}
        told = "; ".join(f"{shape}: {names.get(route, f'shared ({route})')}" for shape, route in taken.items())
        yield Check(f"scoring on {device}", True, told)
    engines = [name for name in ENGINES if name != "vllm" or find_spec("vllm")]
    yield Check("sampling engines", True, ", ".join(engines))
    fused = {"triton": "triton", "cut_cross_entropy": "cut-cross-entropy", "vllm": "vllm"}
    have = [name for module, name in fused.items() if find_spec(module)]
    remedy = "only a GPU takes them: pip install cut-cross-entropy vllm"
    yield Check("gpu kernels", len(have) == len(fused), ", ".join(have) or "none of them", remedy, needed=False)


def small_llama() -> Any:
    """A Llama with 20,000 random parameters, the same every time; made without touching the caller's random state."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    special: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**size, **special, initializer_range=0.3)).eval()


# --------------------------------------------------------------------------------------------------------- self-test
def self_test() -> Iterator[Check]:
    """Computes a little with every verb and starts a kernel; a few seconds on two cores. Keeps nothing on disk."""
    started = time.monotonic()
    with _kernel() as answer:  # it starts while the numbers are computed
        yield from (_measured(test.__name__.strip("_"), test) for test in (_score, _sample, _greedy, _train))
        yield answer()
    yield Check("self-test", True, f"took {time.monotonic() - started:.1f} s")


def _measured(name: str, test: Callable[[], tuple[bool, str]]) -> Check:
    logger = logging.getLogger("workbench")
    before = logger.level
    logger.setLevel(logging.ERROR)  # warnings of the kernels are findings here, told in the check's own words
    try:
        fine, found = test()
    except Exception as error:  # whatever it is, it is the finding
        fine, found = False, _in_a_line(error)
    finally:
        logger.setLevel(before)
    return Check(name, fine, found, f"numbers of this installation are not to be trusted: {PINNED}")


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _groups() -> list[Any]:
    from workbench.kernels import Group

    return [Group([1, *range(5, 5 + n)], [[10 + n, 11, 2], [12, 13, 14 + n, 15, 2]]) for n in (3, 7, 12)]


def _score() -> tuple[bool, str]:
    import torch

    from workbench.kernels import score
    from workbench.kernels.scoring import route_taken

    model, groups = small_llama(), _groups()
    taken = route_taken(model, groups, "shared")
    if taken == "padded":
        return False, "the shared route gives other numbers than the padded one and is not used"
    with torch.no_grad():
        padded, shared = (score(model, groups, route=route).token_logps for route in ("padded", "shared"))
    gap = float((padded - shared).abs().max())
    return gap <= TOLERANCE, f"padded and shared ({taken}) routes differ by {gap:.1g} nats a token"


def _sample() -> tuple[bool, str]:
    import torch

    from workbench.kernels import Group, sample, score

    model, prompts = small_llama(), [[1, 5, 6, 7], [1, 9]]
    drawn = sample(model, prompts, n=3, max_new_tokens=12, seed=0)
    with torch.no_grad():
        scores = score(model, list(map(Group, prompts, drawn.tokens)), route="padded")
    told = [logp for rows in drawn.token_logps for row in rows for logp in row]
    gap = float((scores.token_logps[scores.is_token] - torch.tensor(told)).abs().max())
    return gap <= TOLERANCE, f"log-probs of {len(told)} sampled tokens differ by {gap:.1g} nats from scoring them again"


def _greedy() -> tuple[bool, str]:
    import torch

    from workbench.kernels import sample

    model, prompt = small_llama(), [1, 5, 6, 7]
    (ours,) = sample(model, [prompt], max_new_tokens=16, temperature=0.0).tokens[0]
    given = torch.tensor([prompt])
    theirs = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=16, do_sample=False)
    same = ours == theirs[0, len(prompt) :].tolist()
    return same, f"{len(ours)} greedy tokens are {'those' if same else 'not those'} of transformers' generate"


def _train() -> tuple[bool, str]:
    """DPO from policy = reference: the loss is log 2, and a step makes chosen likelier beside rejected than it was."""
    from types import SimpleNamespace

    import torch

    from workbench.kernels import score
    from workbench.models import Policy
    from workbench.objectives import dpo
    from workbench.training.loop import TrainConfig, train
    from workbench.training.reference import PairRow
    from workbench.training.steps import preference_step

    policy = Policy(small_llama(), SimpleNamespace(eos_token_id=2), "self-test")
    groups = _groups()
    with torch.no_grad():
        before = score(policy, groups).sums
    pairs = zip(groups, before.tolist(), strict=True)
    rows = [PairRow(str(number), group, tuple(then)) for number, (group, then) in enumerate(pairs)]
    config = TrainConfig(learning_rate=1e-3, batch_size=len(rows), warmup_ratio=0.0, schedule="constant")
    loss = train(policy, rows, preference_step(dpo, beta=0.1), config)
    with torch.no_grad():
        moved = (score(policy, groups).sums - before).mean(0)
    gained = float(moved[0] - moved[1])  # by an objective of the wrong sign: negative
    found = f"DPO loss {loss:.6f} at the start (log 2 is {math.log(2):.6f}); a step moves the margin by"
    return abs(loss - math.log(2)) <= TOLERANCE and gained > 0, f"{found} {gained:+.2g} nats"


@contextmanager
def _kernel() -> Iterator[Callable[[], Check]]:
    """Starts a kernel; what it yields waits for its answer."""
    from jupyter_client.manager import KernelManager

    remedy = f"see why with: {sys.executable} -m ipykernel_launcher; a busy machine may only need another try"
    manager: Any = KernelManager(kernel_name="python3")
    started, failure = time.monotonic(), ""
    try:
        manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # it warns of what is usual
    except Exception as error:  # a missing launcher, a missing kernel, no free port: all are the finding
        failure = _in_a_line(error)

    def answer() -> Check:
        if failure:
            return Check("kernel answers", False, failure, remedy)
        client = manager.client()
        client.start_channels()
        said: list[str] = []
        hear: dict[str, Any] = {"output_hook": lambda message: said.append(message["content"].get("text", ""))}
        try:
            client.wait_for_ready(timeout=KERNEL_S)
            client.execute_interactive("print(6 * 7)", timeout=KERNEL_S, **hear)
            fine = "42" in "".join(said)
            found = f"in {time.monotonic() - started:.1f} s" if fine else "the wrong thing"
        except (RuntimeError, TimeoutError) as error:
            fine, found = False, " ".join(str(error).split())
        finally:
            client.stop_channels()
        return Check("kernel answers", fine, found, remedy)

    try:
        yield answer
    finally:
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)
