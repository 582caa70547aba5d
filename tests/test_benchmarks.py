"""Benchmarks run, their sides agree, and a side that computes something else ends them. No time is asserted."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))

import harness  # noqa: E402
import training_step  # noqa: E402
import world_step  # noqa: E402

NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py") if path.stem not in ("harness", "results"))


def run(name, *options):
    """The benchmark as a command, in its smallest setting."""
    words = [sys.executable, str(FOLDER / f"{name}.py"), "--smoke", *map(str, options)]
    return subprocess.run(words, capture_output=True, text=True, timeout=500)


# ------------------------------------------------------------------------------------------------------------- harness
def ones(case, *, thousands=1, value=1.0):
    """A side that fills an array of so many thousand float64 and returns its mean."""

    def call():
        array = np.full(1000 * thousands, value)
        return lambda: {"mean": array.mean(), "round trip": np.arange(3.0) * value}

    return call


def slow(case):
    import time

    return lambda: time.sleep(case["sleep_s"]) or {"mean": 1.0}


def broken(case):
    raise RuntimeError("no such file")


def stepping(case):
    """A loop of three steps that counts them."""
    steps = []

    def loop(pause):
        for number in range(3):
            pause()
            steps.append(number)

    going = harness.Loop(loop)

    def call():
        going()
        return {"steps": float(len(steps))}

    call.close = going.close
    return call


@pytest.mark.slow
def test_a_contest_times_every_side_in_every_round_and_memory_is_what_was_allocated():
    sides = {"small": functools.partial(ones, thousands=100), "large": functools.partial(ones, thousands=10_000)}
    with harness.Contest(sides) as contest:
        for name in ("first", "second"):  # the processes stay
            result = contest.run({"name": name}, rounds=3)
            assert [len(result.seconds[side]) for side in sides] == [3, 3]
            assert [len(result.numbers[side]) for side in sides] == [4, 4]  # the warm-up's numbers count
    assert result.check({"mean": 1e-6, "round trip": 1e-6}) == 0
    with harness.Contest(sides, memory=True) as contest:
        result = contest.run({"name": "memory"}, rounds=2)
    # 10 million float64; a page or two more or less
    assert result.peak_mib["large"] == pytest.approx([76.3, 76.3], abs=2)
    assert result.ratios("small", "large", "peak_mib") == pytest.approx([0.01, 0.01], abs=0.02)


@pytest.mark.slow
def test_a_failing_side_ends_the_contest_and_a_hanging_one_is_reported():
    with harness.Contest({"fine": ones, "broken": broken}) as contest, pytest.raises(SystemExit, match="no such file"):
        contest.run({"name": "a"}, rounds=1)
    with harness.Contest({"fine": ones, "slow": slow}) as contest:
        contest.run({"name": "start", "sleep_s": 0}, rounds=1)  # the limit is not for the start of the processes
        result = contest.run({"name": "a", "sleep_s": 120}, rounds=2, limit_s=3)
    assert result.missing == {"slow": "did not finish in 3 s"}
    assert result.sides == ["fine"]
    assert len(result.seconds["fine"]) == 2


def result_of(**numbers):
    return harness.Result({"name": "case"}, numbers={side: [values] for side, values in numbers.items()})


@pytest.mark.parametrize("theirs", [{"x": 1.01}, {"x": float("nan")}, {}, {"x": [1.0, 1.0]}])
def test_sides_that_differ_end_the_benchmark(theirs):
    result = result_of(ours={"x": 1.0}, theirs=theirs)
    with pytest.raises(SystemExit, match="case, round 0: x of theirs differs from that of ours"):
        result.check({"x": 1e-3})


def test_vectors_differ_by_the_length_of_their_difference():
    result = result_of(ours={"x": [3.0, 4.0]}, theirs={"x": [3.0, 4.0 + 5e-4]})
    assert result.check({"x": 1e-3}) == pytest.approx(1e-4, rel=1e-3)
    assert result_of(ours={"x": 0.0}, theirs={"x": 0.0}).check({"x": 0.0}) == 0


def test_a_loop_takes_one_step_a_call_and_can_be_left():
    call = stepping({})
    assert [call()["steps"] for _ in range(2)] == [1, 2]
    call.close()  # between two steps
    call = stepping({})
    assert [call()["steps"] for _ in range(3)] == [1, 2, 3]
    with pytest.raises(RuntimeError, match="no steps left"):
        call()


def test_an_error_inside_a_loop_reaches_the_caller():
    def loop(pause):
        pause()
        raise ValueError("row 3")

    going = harness.Loop(loop)
    with pytest.raises(ValueError, match="row 3"):
        going()


# ------------------------------------------------------------------------------------------------- what they compare
CASE = {"name": "x", **training_step.DEFAULTS, "prompt": (10, 10), "response": (2, 2), "vocab": 50, "k": 4, "groups": 3}


def test_ideal_token_ratio():
    """K(P+R)/(P+KR) with P=10, R=2, K=4; TRL runs 2(K-1) rows."""
    assert training_step.token_ratios(CASE) == pytest.approx((48 / 18, 72 / 18))


def test_floors_count_a_weight_once_a_token():
    """One layer of width 4: 4*16 attention and 3*4*10 feed-forward weights; head and embedding 50*4 each."""
    operations, moved = training_step.step_floors({**CASE, "width": 4, "layers": 1})
    assert operations == 6 * (184 * 3 * 18 + 200 * 3 * 8)
    assert moved == 40 * (184 + 400)


def test_checksum_sees_every_token_but_not_the_order_of_rows():
    rows = [([1], [2], [3]), ([4], [5], [6])]
    assert training_step.checksum(rows) == training_step.checksum(rows[::-1])
    assert training_step.checksum(rows) != training_step.checksum([([1], [2], [3]), ([4], [5], [7])])


def test_overlapping_intervals_are_counted_once():
    assert world_step.covered([(0, 2), (1, 3), (1, 1.5), (5, 6)]) == 4


@pytest.mark.slow
def test_a_round_is_a_whole_optimiser_step_even_where_it_is_held_in_parts():
    """Three groups of 2,000 tokens are more than the 4,096 that the training loop holds at once."""
    case = {**CASE, "prompt": (2_000, 2_000), "k": 2, "width": 16, "layers": 1, "rounds": 1, "device": "cpu"}
    case |= {"memory": False}
    call = training_step.workbench_side(case)
    first, second = call()(), call()()
    call.close()
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-5)  # the policy is the reference still
    assert second["loss"] < first["loss"]
    assert 0 < np.abs(first["moved"]).max() <= 1.01 * training_step.LEARNING_RATE  # one step of AdamW


# -------------------------------------------------------------------------------------------------------- the commands
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n if n == "ranking" else pytest.param(n, marks=pytest.mark.exhaustive) for n in NAMES]
)
def test_every_benchmark_runs_in_its_smallest_setting(name, tmp_path):
    done = run(name, "--output", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "threads 1" in done.stdout
    written = json.loads((tmp_path / f"bench-{name}.json").read_text())
    assert written["facts"]["size"] == "smoke"
    assert written["rows"]
    if name == "training_step":
        # TRL on a CPU scores prompts too, which flatters every ratio: its row never stands without the compact one
        for case in {row["case"] for row in written["rows"]}:
            assert {"TRL", "compact TRL"} <= {row["side"] for row in written["rows"] if row["case"] == case}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["ranking", *[pytest.param(n, marks=pytest.mark.exhaustive) for n in ("scoring_memory", "training_step")]]
)
def test_sides_that_compute_something_else_are_found(name, tmp_path):
    done = run(name, "--sabotage", 0.5, "--output", tmp_path)
    assert done.returncode == 1
    assert "the sides do not compute the same thing" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_missing_gpu_is_one_line():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run("ranking", "--device", "cuda")
    assert done.returncode == 1
    assert done.stderr.startswith("--device cuda was asked for but torch sees no GPU")
    assert done.stderr.count("\n") == 1


def test_a_missing_peer_is_one_line(monkeypatch):
    def absent(name):
        raise harness.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(harness.metadata, "version", absent)
    with pytest.raises(SystemExit, match=r"TRL, .* is not installed; run `make bench`"):
        harness.require_trl()


def test_the_package_never_imports_a_peer():
    for path in (FOLDER.parent / "workbench").rglob("*.py"):
        lines = [line.split() for line in path.read_text().splitlines()]
        assert not [
            line for line in lines if line[:1] in (["import"], ["from"]) and line[1].startswith(("trl", "choix"))
        ]
