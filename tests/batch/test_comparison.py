"""Two runs side by side: what differs is named, what is the same is called so, and manifests are only text."""

import json
import math
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from toy_notebooks import claim_records

from workbench import cli, runs
from workbench.batch import comparison
from workbench.runs.run import Run


def make(folder: Path, *, results=None, claims=None, **manifest) -> Run:
    """A finished run folder: `results` by seed."""
    config = {"beta": 0.1, "arms": ["a", "b"], "inner": {"lr": 1e-3}}
    given = {"seeds": [0, 1], "model": "", "dataset": "", "device": "cpu", "inputs": ["", ""], "config": config}
    facts = {"system": "toy", "scale": "tiny", "status": "done", "started": "1", "key": "k", "notebook": "n"}
    facts |= {"provenance": {"python": "3.11.7", "torch": "2.13.0", "cores": "2"}, "parameters": given, "inputs": []}
    facts["code"] = {"hash": "h", "commit": "c", "changed": [], "diff": ""}
    runs.write_json(folder / "manifest.json", facts | manifest)
    runs.write_json(folder / "claims.json", claim_records() if claims is None else claims)
    usual = {0: {"win": [0.5, 0.75], "text": "x"}, 1: {"win": [0.25, 1], "text": "y"}}
    for seed, result in (results or usual).items():
        runs.write_json(folder / f"seed-{seed}" / "result.json", result)
    return Run(folder)


def shown(found: comparison.Comparison) -> str:
    console = Console(file=StringIO(), width=200)
    comparison.show(found, console)
    return console.file.getvalue()


def test_a_copy_is_identical_and_said_so(tmp_path):
    found = comparison.compare(make(tmp_path / "a"), make(tmp_path / "b", started="2", key="other"))
    assert found.same_results
    assert (found.parameters, found.made_with, found.only) == ([], [], [])
    text = shown(found)
    assert all(f"{part}identical" in text for part in ("Parameters: ", "Made with: ", "Results: 2 seeds, "))
    assert text.splitlines()[-1] == "identical: 3 claims and 4 numbers of 2 seeds are the same"


def test_parameters_and_what_a_run_was_made_with_are_named_by_dotted_keys(tmp_path):
    a = make(tmp_path / "a")
    config = {"beta": 0.5, "arms": ["a"], "inner": {"lr": 1e-2}, "new": None}
    other = {**a.manifest["parameters"], "config": config, "inputs": ["m", ""]}
    given = {"parameters": other, "provenance": {"python": "3.11.7", "torch": "2.14.0", "gpu": "H200", "cores": "2"}}
    given |= {"code": {"hash": "h2", "commit": "c", "changed": ["workbench/x.py"], "diff": "code.diff"}}
    given |= {"inputs": [{"kind": "model", "source": "m", "fingerprint": "m", "revision": "r"}]}
    b = make(tmp_path / "b", **given)
    found = comparison.compare(a, b)
    assert {row.name: (row.a, row.b) for row in found.parameters} == {
        "config.beta": (0.1, 0.5),
        "config.arms": (["a", "b"], ["a"]),
        "config.inner.lr": (1e-3, 1e-2),
        "config.new": (comparison.MISSING, None),
    }
    made = {row.name: (row.a, row.b) for row in found.made_with}
    expected = {"provenance.torch": ("2.13.0", "2.14.0"), "provenance.gpu": (comparison.MISSING, "H200")}
    expected |= {"code.hash": ("h", "h2"), "code.changed": ([], ["workbench/x.py"])}
    expected |= {"code.diff": (comparison.MISSING, "lost")}
    assert {name: made[name] for name in expected} == expected
    assert "code.commit" not in made
    assert made["inputs.model.revision"][1] == "r"
    assert "config.inner.lr" in shown(found)


def test_claims_stand_side_by_side_with_means_and_verdicts(tmp_path):
    ours, theirs = claim_records(), claim_records()
    theirs[0] |= {"measured": [2.0, 2.2, 2.4], "verdict": "not shown"}
    del theirs[1]
    found = comparison.compare(make(tmp_path / "a", claims=ours), make(tmp_path / "b", claims=theirs))
    first, second, third = found.claims
    assert (first.id, first.verdict_a, first.verdict_b, first.same) == ("C1", "shown in small", "not shown", False)
    assert first.mean_a == pytest.approx(1.1)
    assert first.mean_b == pytest.approx(2.2)
    assert (second.id, second.verdict_b, second.same) == ("C2", "", False)
    assert math.isnan(second.mean_b)
    assert third.same
    assert not found.same_results
    text = shown(found)
    assert "shown in small → not shown" in text
    assert "not shown → (none)" in text
    assert text.splitlines()[-1] == "not identical: 2 of 3 claims, 0 of 2 seeds, 2 verdicts differ"


def test_results_tell_the_largest_relative_difference_and_where(tmp_path):
    a = make(tmp_path / "a", results={0: {"x": {"loss": [1.0, 2.0], "n": 3}, "t": "a"}, 2: {}})
    b = make(tmp_path / "b", results={0: {"x": {"loss": [1.1, 4.0], "n": 3}, "t": "b", "new": 1}, 10: {}})
    found = comparison.compare(a, b)
    (row,) = found.seeds
    assert row == ("seed-0", 3, 2, 0.5, "x.loss.1", 2)
    assert found.only == [("seed-2", "a"), ("seed-10", "b")]
    text = shown(found)
    assert "seed-2: only in A" in text
    assert text.splitlines()[-1] == "not identical: 0 of 3 claims, 1 of 1 seeds differ; 2 in one only"


def test_nan_equals_nan_and_never_hides_a_difference(tmp_path):
    nan, inf = float("nan"), float("inf")
    same = {0: {"x": [nan, inf, -inf, 0.0]}}
    assert comparison.compare(make(tmp_path / "a", results=same), make(tmp_path / "b", results=same)).same_results
    other = {0: {"x": [1.0, inf, inf, 1e-9]}}
    found = comparison.compare(make(tmp_path / "a", results=same), make(tmp_path / "c", results=other))
    assert found.seeds[0] == ("seed-0", 4, 3, inf, "x.0", 0)
    claims = claim_records()
    claims[0]["measured"] = [nan, 1.0, 2.0]
    found = comparison.compare(make(tmp_path / "d", claims=claims), make(tmp_path / "e"))
    assert math.isnan(found.claims[0].mean_a)
    text = json.dumps(found.record(), allow_nan=False)
    assert json.loads(text)["claims"][0]["mean_a"] is None


def test_true_and_one_differ_but_one_and_one_point_zero_do_not():
    found = comparison.differences({"a": 1, "b": 1, "c": []}, {"a": 1.0, "b": True, "c": {}})
    assert found == [("b", 1, True), ("c", [], {})]


def test_hostile_text_is_neither_markup_nor_a_terminal_command(tmp_path):
    evil = "[/bold][red]x[/red] \x1b[2J\x07 [/INST]"
    claims = claim_records()
    claims[0] |= {"statement": evil, "verdict": evil, "id": "[/C1]"}
    parameters = {"config": {"[/k]": evil, "long": "y" * 5000}, "seeds": [0]}
    facts = {"claims": claims, "parameters": parameters, "provenance": {evil: evil}}
    b = make(tmp_path / "[/b]", results={0: {"[/r]": 1.0}}, **facts)
    text = shown(comparison.compare(make(tmp_path / "a"), b))
    assert all(words in text for words in ("[/bold][red]x[/red]", "config.[/k]"))
    assert not any(words in text for words in ("\x1b", "\x07", "y" * 200))


def test_runs_without_results_are_not_called_identical(tmp_path):
    for name in "ab":
        runs.write_json(tmp_path / name / "manifest.json", {"system": "x", "scale": "tiny", "parameters": {}})
    found = comparison.compare(Run(tmp_path / "a"), Run(tmp_path / "b"))
    assert not found.same_results
    assert shown(found).splitlines()[-1] == "nothing to compare: neither run holds claims or results"
    with pytest.raises(ValueError, match=r"nothing is no run: it holds no manifest\.json"):
        comparison.compare(Run(tmp_path / "a"), Run(tmp_path / "nothing"))


def test_the_command_finds_runs_by_name_and_prints_json(runs_root, capsys):
    make(runs_root / "toy" / "tiny-aaaa")
    make(runs_root / "toy" / "tiny-bbbb", scale="smoke")
    assert cli.main(["compare", "toy/tiny-aaaa", "bbbb"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("A: toy/tiny-aaaa\nB: toy/tiny-bbbb\n")
    assert "Parameters: 1 differ" in out
    assert cli.main(["compare", "aaaa", "bbbb", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["parameters"] == [{"name": "scale", "a": "tiny", "b": "smoke"}]
    assert record["same_results"] is True
    assert cli.main(["compare", "aaaa", "cccc"]) == 2
    assert capsys.readouterr().err.startswith("error: no run 'cccc'")
