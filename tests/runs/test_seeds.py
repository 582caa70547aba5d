"""Seeds side by side: each once, in order, in as many processes and threads as asked for."""

import os

import pytest

from workbench.runs.run import Run
from workbench.runs.seeds import over_seeds


def square(task, config, seed, part):
    """An experiment for `over_seeds`; it leaves a mark each time it really runs."""
    with open(part.folder.parent / "calls.txt", "a", encoding="utf-8") as file:
        file.write(f"{seed}\n")
    if config.get("fail") == seed:
        raise ValueError("broken on purpose")
    return {"value": seed**2, "pid": os.getpid()}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_seeds_side_by_side_in_order_and_once(tmp_path, workers):
    run = Run(tmp_path)
    tmp_path.mkdir(exist_ok=True)
    results = over_seeds(square, None, {}, [3, 1, 2], run, workers=workers)
    assert [r["value"] for r in results] == [9, 1, 4]
    assert (workers == 1) == (results[0]["pid"] == os.getpid())
    over_seeds(square, None, {}, [3, 1, 2], run, workers=workers)
    assert sorted((tmp_path / "calls.txt").read_text().split()) == ["1", "2", "3"]


def threads(task, config, seed, part):
    import torch

    return torch.get_num_threads()


def test_threads_of_work_that_stays_in_this_process(tmp_path):
    """One, as a worker has, so that notebooks side by side do not wait on each other; all only where asked for."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one = over_seeds(threads, None, {}, [0], Run(tmp_path / "one"), workers=1, all_threads=False)
        all_of_them = over_seeds(threads, None, {}, [0], Run(tmp_path / "all"), workers=1)
        assert (one, all_of_them, torch.get_num_threads()) == ([1], [2], 2)
    finally:
        torch.set_num_threads(before)


def cube(task, config, arm, seed, part):
    return part.cached(f"arm-{arm}", lambda: seed**3 if arm == "cube" else -seed)


def gather(task, config, seed, part):
    return {arm: cube(task, config, arm, seed, part) for arm in ("cube", "minus")}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_arms_of_a_seed_are_units_of_their_own(tmp_path, workers):
    run = Run(tmp_path)
    results = over_seeds(gather, None, {}, [2, 3], run, workers=workers, run_arm=cube, arms=["cube", "minus"])
    assert results == [{"cube": 8, "minus": -2}, {"cube": 27, "minus": -3}]
    assert run.read_progress() == {"done": 4, "total": 4, "stage": "done"}


@pytest.mark.slow
def test_a_failed_seed_is_named_and_the_others_are_kept(tmp_path):
    with pytest.raises(RuntimeError, match="seed 1 failed: ValueError: broken on purpose"):
        over_seeds(square, None, {"fail": 1}, [0, 1], Run(tmp_path), workers=2)
    assert over_seeds(square, None, {}, [0, 1], Run(tmp_path), workers=1)[1]["value"] == 1


def die(task, config, seed, part):
    os._exit(9)


@pytest.mark.slow
def test_a_worker_that_dies_is_told_with_what_to_look_for(tmp_path):
    with pytest.raises(RuntimeError, match=r"seed . failed: BrokenProcessPool: .* is there memory enough"):
        over_seeds(die, None, {}, [0, 1], Run(tmp_path), workers=2)


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_bad_seeds(tmp_path, seeds):
    with pytest.raises(ValueError, match="seeds must be different numbers, at least one"):
        over_seeds(square, None, {}, seeds, Run(tmp_path))
