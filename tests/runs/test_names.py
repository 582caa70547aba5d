"""Names of runs on a command line: what finds one, and what is said when none or several are meant."""

import os
from pathlib import Path

import pytest

from workbench import runs
from workbench.runs import names


@pytest.fixture
def root(tmp_path) -> Path:
    for name in ("spin/tiny-0f3a52c1b7de", "spin/tiny-0f9911223344", "dpo/smoke-aa0000000000", "dpo/full-spin00000000"):
        runs.write_json(tmp_path / name / "manifest.json", {"system": name.split("/")[0]})
    (tmp_path / ".cache" / "spin-x").mkdir(parents=True)
    (tmp_path / "empty" / "tiny-1").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("spin/tiny-0f3a52c1b7de", "spin/tiny-0f3a52c1b7de"),
        ("spin/tiny-0f3", "spin/tiny-0f3a52c1b7de"),
        ("spin/tiny-0f3a52c1b7de/", "spin/tiny-0f3a52c1b7de"),
        ("0f99", "spin/tiny-0f9911223344"),
        ("smoke", "dpo/smoke-aa0000000000"),
        ("dpo/f", "dpo/full-spin00000000"),
    ],
)
def test_the_start_of_a_name_is_enough(root, text, name):
    assert names.find_run(text, root).folder == root / name


def test_a_whole_name_is_not_taken_for_the_start_of_another(root):
    """A rerun lies beside its original, under the same name with `-again-1` behind."""
    runs.write_json(root / "spin" / "tiny-0f3a52c1b7de-again-1" / "manifest.json", {"system": "spin"})
    for text in ("spin/tiny-0f3a52c1b7de", "tiny-0f3a52c1b7de", "0f3a52c1b7de", "0f3a"):
        assert names.find_run(text, root).folder == root / "spin" / "tiny-0f3a52c1b7de"
    with pytest.raises(ValueError, match="fits 2 runs"):
        names.find_run("spin/tiny-0f3a", root)


def test_a_folder_is_a_name_wherever_it_lies(root, tmp_path, monkeypatch):
    elsewhere = tmp_path / "far" / "away" / "mine"
    runs.write_json(elsewhere / "manifest.json", {})
    assert names.find_run(str(elsewhere), root).folder == elsewhere
    monkeypatch.chdir(elsewhere.parent)
    assert names.find_run("mine", root).folder == elsewhere
    assert names.find_run(".//mine", root).folder == elsewhere


def test_a_run_is_found_by_the_name_that_is_shown(root, tmp_path):
    for text in ("0f99", "dpo/s"):
        run = names.find_run(text, root)
        assert names.find_run(names.name_of(run, root), root) == run
    assert names.name_of(names.find_run("0f99", root), root) == "spin/tiny-0f9911223344"
    elsewhere = runs.Run(tmp_path / "far" / "away" / "mine")
    assert names.name_of(elsewhere, root) == str(elsewhere.folder)


def test_the_root_is_that_of_the_environment_unless_given(root, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(root))
    assert names.find_run("0f99").folder == root / "spin" / "tiny-0f9911223344"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "spin/tiny-0f",
            "'spin/tiny-0f' fits 2 runs: spin/tiny-0f3a52c1b7de, spin/tiny-0f9911223344; give more of the name",
        ),
        ("spin/tiny-77", "did you mean spin/tiny-0f3a52c1b7de, spin/tiny-0f9911223344"),
        ("spim/tiny-0f3a", "did you mean spin/tiny-0f3a52c1b7de"),
        ("dpo/smoke-aa1000000000", "did you mean dpo/full-spin00000000, dpo/smoke-aa0000000000"),
        ("zzzzzzzz", "known: dpo/full-spin00000000, dpo/smoke-aa0000000000"),
        ("9911223344", "no run '9911223344'"),  # the middle of a name
        ("", "no run ''"),
        ("/", "no run '/'"),
    ],
)
def test_what_is_not_one_run_is_said_in_one_line(root, text, message):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        names.find_run(text, root)
    assert message in str(error.value)


def test_a_folder_that_is_no_run_is_told_apart_from_a_name_that_is_none(root):
    with pytest.raises(ValueError, match=r"empty.tiny-1' in .* \(that folder holds no manifest\.json\)"):
        names.find_run(os.fspath(root / "empty" / "tiny-1"), root)


def test_before_the_first_run_the_remedy_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no runs yet; `workbench reproduce` makes some"):
        names.find_run("spin", tmp_path / "none")


def test_a_long_list_is_cut(tmp_path):
    for number in range(9):
        runs.write_json(tmp_path / "spin" / f"tiny-{number}" / "manifest.json", {})
    with pytest.raises(ValueError, match=r"fits 9 runs: .*tiny-5 and 3 more; give"):
        names.find_run("spin", tmp_path)
