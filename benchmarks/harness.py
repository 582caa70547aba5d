"""The harness of the benchmarks: a contest of sides, one process a side, rounds in turn.

How a contest is fair:
- every side has a process of its own that stays alive, so imports, patches and allocators of one side touch no other;
- all use one thread; inside a round every side runs once, in random order, so a busy moment falls on all of them;
- a time is CPU seconds of the side's process, a ratio is taken inside a round, and its median and range are printed;
- round 0 is a warm-up: not timed, but its numbers count. Sides that do not compute the same thing end the benchmark.

Memory is the growth of the resident set in one round over what stood before it (`VmHWM`, Linux), in processes of their
own whose C library gives freed memory back at once, because otherwise memory kept by the allocator would hide a peak.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import results

ROOT = Path(__file__).resolve().parent.parent

# Prepares a case (imports, model, data) and returns what a round runs. That returns the numbers or vectors on which the
# sides must agree, by name, or a function that computes them once the clock has stopped. `close`, if it has one, is
# called before the next case.
Side = Callable[[dict], Callable[[], Any]]

QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "PYTHONWARNINGS": "ignore",
    "KINETO_LOG_LEVEL": "99",
}
MEASURES_MEMORY = Path("/proc/self/clear_refs").exists()
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass
class Result:
    """What the sides did in one case.

    Attributes:
        seconds: per side, one number a round: CPU seconds of the process, or GPU seconds between two events.
        peak_mib: per side, one number a round; filled in a memory contest only.
        numbers: per side, what each round returned, round 0 first.
        missing: sides that gave no result in this case, with the reason.
    """

    case: dict
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_mib: dict[str, list[float]] = field(default_factory=dict)
    numbers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def sides(self) -> list[str]:
        return [side for side in self.numbers if side not in self.missing]

    def ratios(self, side: str, over: str, what: str = "seconds") -> list[float]:
        """`what` of `side` over that of `over`, round by round."""
        values = getattr(self, what)
        return [a / b for a, b in zip(values[side], values[over], strict=True)]

    def check(self, tolerances: Mapping[str, float], *, rounds: int = 0) -> float:
        """Largest relative difference to the first side, over the named numbers and the first `rounds` rounds (0: all).

        The difference of two vectors is the length of a - b over the length of the longer one.

        Raises:
            SystemExit: a difference above its tolerance, or a number that is not finite or not there.
        """
        first, *others = self.sides
        worst = 0.0
        for other in others:
            for number, (ours, theirs) in enumerate(zip(self.numbers[first], self.numbers[other], strict=True)):
                for name, tolerance in tolerances.items() if not rounds or number < rounds else ():
                    difference = _difference(ours.get(name), theirs.get(name))
                    worst = max(worst, difference)
                    if not difference <= tolerance:
                        raise SystemExit(
                            f"{self.case['name']}, round {number}: {name} of {other} differs from that of {first} by "
                            f"{difference:.1e} (allowed: {tolerance:.0e}); the sides do not compute the same thing"
                        )
        return worst


def _difference(a: Any, b: Any) -> float:
    """Relative difference of two numbers or vectors; NaN where one is missing or is not finite."""
    a, b = (np.full(1, np.nan) if x is None else np.ravel(np.asarray(x, dtype=float)) for x in (a, b))
    if a.shape != b.shape:
        return math.nan
    longest = max(np.linalg.norm(a), np.linalg.norm(b))
    return float(np.linalg.norm(a - b) / longest) if longest else 0.0


class Contest:
    """Sides in processes of their own, which stay alive from case to case.

        with Contest({"workbench": ours, "peer": theirs}) as contest:
            result = contest.run({"name": "long", "prompt": 512}, rounds=5)

    Args:
        sides: top-level functions (or `functools.partial` of them) by name; the first is what the others are checked
            against.
        memory: measure peaks instead of times.
        device: "cpu", or "cuda" to time with events of the GPU.
    """

    def __init__(self, sides: Mapping[str, Side], *, memory: bool = False, device: str = "cpu"):
        self.sides, self.memory, self.device = dict(sides), memory, device
        self._workers: dict[str, tuple[Any, Any]] = {}

    def __enter__(self) -> Contest:
        if self.memory and self.device == "cpu" and not MEASURES_MEMORY:
            raise SystemExit("memory is measured through /proc/self/clear_refs, which this system does not have")
        return self

    def __exit__(self, *_: Any) -> None:
        for side in list(self._workers):
            self._end(side)

    def run(self, case: dict, *, rounds: int, seed: int = 0, limit_s: float = 600) -> Result:
        """Prepares `case` on every side, warms up, and runs `rounds` rounds.

        A side that needs more than `limit_s` seconds of wall time for its preparation or a round is ended and reported
        as missing; any other failure of a side ends the benchmark.
        """
        result = Result(case)
        prepared = {**case, "device": self.device, "memory": self.memory, "rounds": rounds}
        for side in self.sides:
            result.numbers[side], result.seconds[side], result.peak_mib[side] = [], [], []
            self._send(side, prepared)
        for side in self.sides:  # preparation is not timed, so the sides do it side by side
            self._answer(side, result, limit_s)
        order = np.random.default_rng(seed)
        for number in range(rounds + 1):
            for side in order.permutation(result.sides).tolist():
                self._send(side, None)
                answer = self._answer(side, result, limit_s)
                for what, value in (answer or {}).items():
                    if number > 0 or what == "numbers":
                        getattr(result, what)[side].append(value)
        return result

    def _send(self, side: str, message: dict | None) -> None:
        if side not in self._workers:
            self._start(side)
        self._workers[side][1].send(message)

    def _answer(self, side: str, result: Result, limit_s: float) -> dict | None:
        process, pipe = self._workers[side]
        if not pipe.poll(limit_s):
            result.missing[side] = f"did not finish in {limit_s:.0f} s"
            self._end(side)
            return None
        try:
            answer = pipe.recv()
        except EOFError:
            process.join(5)
            raise SystemExit(
                f"{result.case['name']}: the process of {side} died (exit code {process.exitcode})"
            ) from None
        if isinstance(answer, str):
            raise SystemExit(f"{result.case['name']}: {side} failed\n{answer}")
        return answer

    def _start(self, side: str) -> None:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, self.sides[side], self.memory, self.device), daemon=True)
        old = dict(os.environ)
        os.environ.update({**QUIET, **(_GIVE_BACK if self.memory else {})})  # some are read at a start only
        try:
            process.start()
        finally:
            os.environ.clear()
            os.environ.update(old)
        there.close()
        self._workers[side] = process, here

    def _end(self, side: str) -> None:
        process, pipe = self._workers.pop(side)
        pipe.close()  # it ends by itself, and removes its temporary files, unless it is busy
        process.join(10)
        process.kill()


def _work(pipe: Any, side: Side, memory: bool, device: str) -> None:
    """The process of a side: a case prepares, None runs a round."""
    import torch

    torch.set_num_threads(1)
    call: Any = None
    while True:
        try:
            message = pipe.recv()
            if message is None:
                pipe.send(_measure(call, memory, device))
            else:
                getattr(call, "close", lambda: None)()
                call = None  # the old case leaves before the new one comes
                gc.collect()
                call = side(message)
                pipe.send({})
        except EOFError:
            return
        except (Exception, SystemExit):
            pipe.send(traceback.format_exc())


def _measure(call: Callable[[], Any], memory: bool, device: str) -> dict[str, Any]:
    gc.collect()
    if device == "cuda":
        return _measure_cuda(call)
    if memory:
        Path("/proc/self/clear_refs").write_text("5")  # lowers the high-water mark to the resident set
    resident = _status_kib("VmRSS") if memory else 0
    start = time.process_time()
    found = call()
    seconds = time.process_time() - start
    # at least the 4 KiB of a page, below which nothing is seen
    peak = {"peak_mib": max(4, _status_kib("VmHWM") - resident) / 1024} if memory else {}
    return {"seconds": seconds, **peak, "numbers": found() if callable(found) else found}


def _measure_cuda(call: Callable[[], Any]) -> dict[str, Any]:
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    resident = torch.cuda.memory_allocated()
    start.record()  # type: ignore[no-untyped-call]
    found = call()
    end.record()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    peak = max(4096, torch.cuda.max_memory_allocated() - resident) / 2**20
    numbers = found() if callable(found) else found
    return {"seconds": start.elapsed_time(end) / 1000, "peak_mib": peak, "numbers": numbers}


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


class Loop:
    """A training loop that stands still between its steps, so that a round is one real step of it.

    `run(pause)` calls `pause()` wherever a step begins. It runs in a thread; each call of the `Loop` lets one step go
    and returns when the next one begins, or the loop ends.
    """

    def __init__(self, run: Callable[[Callable[[], None]], Any]):
        self._go, self._still = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._closed = self._ended = False
        self._thread = threading.Thread(target=self._body, args=(run,), daemon=True)
        self._thread.start()
        self._wait()

    def __call__(self) -> None:
        if self._ended:
            raise RuntimeError("the training loop has no steps left; give it more rows or epochs")
        self._go.release()
        self._wait()

    def close(self) -> None:
        self._closed = True
        self._go.release()
        self._thread.join()

    def _pause(self) -> None:
        self._still.release()
        self._go.acquire()
        if self._closed:
            raise _Closed

    def _body(self, run: Callable[[Callable[[], None]], Any]) -> None:
        try:
            run(self._pause)
        except _Closed:
            pass
        except BaseException as error:  # handed to the caller, in its own thread
            self._error = error
        finally:
            self._ended = True
            self._still.release()

    def _wait(self) -> None:
        self._still.acquire()
        if self._error is not None:
            raise self._error


class _Closed(BaseException):
    """Ends a loop from outside."""


def arguments(doc: str | None, *, extra: Callable[[argparse.ArgumentParser], Any] | None = None) -> argparse.Namespace:
    """Reads the command line that all benchmarks share (`size` is "quick", "full" or "smoke"), and prints the facts.

    Raises:
        SystemExit: a GPU was asked for where there is none.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = parser.add_mutually_exclusive_group()
    for size, text in {
        "quick": "under a minute (the default)",
        "full": "minutes; its results go to figures/",
        "smoke": "seconds and tiny sizes: does it run and do the sides agree? Its times mean nothing",
    }.items():
        sizes.add_argument(f"--{size}", dest="size", action="store_const", const=size, help=text, default="quick")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="folder for results (figures, or runs/bench if not --full)")
    if extra:
        extra(parser)
    given = parser.parse_args()
    given.output = given.output or ROOT / ("figures" if given.size == "full" else "runs/bench")
    if given.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("--device cuda was asked for but torch sees no GPU; leave it out to measure on the CPU")
    print("\n" + (doc or "").partition("\n")[0])
    print(", ".join(f"{name} {value}" for name, value in results.machine(given.device).items()), flush=True)
    return given


def require_trl() -> None:
    """Ends with one line where the peer is not installed."""
    try:
        metadata.version("trl")
    except metadata.PackageNotFoundError:
        remedy = "run `make bench`, or: pip install --constraint constraints.txt --editable '.[bench]'"
        raise SystemExit(f"TRL, the peer of this benchmark, is not installed; {remedy}") from None


def device_rates() -> tuple[float, float]:
    """What this GPU reaches on large float32 tensors: operations a second (matmul) and bytes a second (copy).

    A step cannot be faster than its operations over the first, nor than its bytes over the second: the two floors.
    """
    import torch

    a = torch.randn(8192, 8192, device="cuda")
    b = torch.empty_like(a)

    def seconds(work: Callable[[], Any]) -> float:
        work()
        return min(_measure_cuda(work)["seconds"] for _ in range(5))

    multiply, copy = seconds(lambda: torch.mm(a, a, out=b)), seconds(lambda: b.copy_(a))
    return 2 * 8192**3 / multiply, 2 * a.nbytes / copy
