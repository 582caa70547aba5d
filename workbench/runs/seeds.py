"""Seeds side by side: one experiment over several seeds and arms, in worker processes, resumable."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from workbench.runs.files import in_batch, read_json
from workbench.runs.run import Run

log = logging.getLogger(__name__)

MAYBE = '; is there memory enough? In a script the call must stand under if __name__ == "__main__":'


def over_seeds(
    experiment: Callable[..., Any],
    task: Any,
    config: Any,
    seeds: Sequence[int],
    run: Run,
    *,
    workers: int = 0,
    all_threads: bool = True,
    run_arm: Callable[..., Any] | None = None,
    arms: Sequence[str] = (),
) -> list[Any]:
    """Runs `experiment(task, config, seed, part)` for every seed, side by side, and returns the results in order.

    Every seed has a part folder `seed-<n>` and its result is stored there, so a killed call goes on where it stopped
    and a finished one returns at once. Worker processes use one thread each: at these sizes that is faster than one
    process with many, and the numbers do not depend on how many workers there are.

    Args:
        workers: processes; 0 takes one for each core, 1 stays in this process (for a debugger).
        all_threads: whether work that stays in this process may use every core. Without it the numbers are those of a
            worker, to the bit, and notebooks side by side do not wait on each other's threads.
        run_arm: `run_arm(task, config, arm, seed, part)` computes and stores one arm of a seed. With it every arm of
            every seed is a unit of work of its own, and no core waits for the last seed.
        arms: the names for `run_arm`.

    Raises:
        ValueError: `seeds` is empty or repeats a number.
        RuntimeError: a seed failed; its number and error are named, what is finished is kept.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be different numbers, at least one; got {list(seeds)}")
    parts = {seed: run.child(f"seed-{seed}") for seed in seeds}
    missing = [seed for seed, part in parts.items() if not (part.folder / "result.json").is_file()]
    # arms outside, seeds inside: what the arms of a seed share (its starting checkpoint) is made once
    pairs = [(arm, seed) for arm in arms for seed in missing] if run_arm else []
    jobs = [_Job(run_arm, (task, config, arm, seed, parts[seed]), seed, arm) for arm, seed in pairs if run_arm]
    whole = [_Job(_run_seed, (experiment, task, config, seed, parts[seed]), seed) for seed in missing]
    units = jobs or whole
    workers = min(workers or len(os.sched_getaffinity(0)), len(units))
    if workers > 1:
        _run_pool(units, run, workers)
    else:
        with nullcontext() if all_threads else _one_thread():
            for number, job in enumerate(units):
                run.progress(number, len(units), f"seed {job.seed} {job.arm}".strip())
                job.do()
        if units:
            run.progress(len(units), len(units), "done")
    for job in whole if jobs else []:  # every arm is stored: this only gathers them
        job.do()
    return [read_json(part.folder / "result.json") for part in parts.values()]


class _Job(NamedTuple):
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    seed: int
    arm: str = ""

    def do(self) -> None:
        self.function(*self.arguments)  # results go through the run folder, not through the pipe


def _run_pool(jobs: Sequence[_Job], run: Run, workers: int) -> None:
    from tqdm import tqdm

    context = multiprocessing.get_context("spawn")  # fork is unsafe once torch has started its threads
    bar = tqdm(total=len(jobs), desc=run.folder.parent.name, disable=in_batch(), unit="part")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))
    with pool, bar:
        waiting = {pool.submit(job.do): job for job in jobs}
        while waiting:
            run.progress(len(jobs) - len(waiting), len(jobs), f"{workers} side by side")
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                job = waiting.pop(future)
                if (error := future.exception()) is not None:
                    for other in waiting:
                        other.cancel()
                    hint = MAYBE if isinstance(error, BrokenProcessPool) else ""
                    raise RuntimeError(f"seed {job.seed} failed: {type(error).__name__}: {error}{hint}") from error
                bar.update()
        run.progress(len(jobs), len(jobs), "done")


def _run_seed(experiment, task, config, seed: int, part: Run) -> None:
    part.cached("result", lambda: experiment(task, config, seed, part))


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start_worker(parent: int) -> None:
    # Before the first import of numpy: its BLAS would start a thread a core in every worker, and they would wait on
    # each other.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=exit_with, args=(parent,), daemon=True).start()


def exit_with(parent: int) -> None:
    """Ends this worker when its parent is gone: a SIGKILL of a notebook must not leave workers running."""
    while os.getppid() == parent:
        time.sleep(0.5)
    log.warning("the parent process is gone: worker stops")
    sys.stderr.flush()
    os._exit(1)
