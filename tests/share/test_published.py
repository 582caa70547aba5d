"""What is published: which runs README may show, and how they get into it."""

import json
from pathlib import Path

import pytest
from finished_runs import finished
from toy_notebooks import claim_records, toy, write_notebook

from workbench import methods, runs
from workbench.share import published


@pytest.fixture
def registry(tmp_path, monkeypatch):
    notebook = write_notebook(tmp_path / "toy.ipynb")
    systems = {name: toy(name, notebook, cost="1 min") for name in ("left", "right", "other")}
    monkeypatch.setattr(methods, "REGISTRY", systems)
    return systems


def default_run(root: Path, system: str, **options):
    return finished(root, system, **{**json.loads(json.dumps(methods.Experiment(system).parameters)), **options})


def test_only_default_tiny_runs_are_published(tmp_path, registry):
    folder = tmp_path / "published"
    for name in ("other", "gone"):
        runs.write_json(folder / f"{name}.json", {"system": name, "scale": "tiny", "claims": []})
    default_run(tmp_path, "left")
    default_run(tmp_path, "left", name="newer", day=2, records=claim_records("newer"))
    default_run(tmp_path, "right", config={"beta": 9.0, "name": "plain", "flag": True, "steps": 1})
    default_run(tmp_path, "right", scale="smoke", name="s")
    notes = published.publish(folder, tmp_path)
    entries = {entry["system"]: entry for entry in published.entries(folder)}
    assert list(entries) == ["left", "other"]
    assert entries["left"]["claims"][0]["statement"] == "newer"
    assert [note.split(":")[0] for note in notes] == ["right", "other"]
    assert "not in the table" in notes[0]
    assert "kept" in notes[1]


def test_readme_table_is_written_between_the_markers_and_only_there(tmp_path, registry):
    folder, readme = tmp_path / "published", tmp_path / "README.md"
    default_run(tmp_path, "left")
    published.publish(folder, tmp_path)
    readme.write_text("# top\n<!-- scoreboard -->\nold\n<!-- /scoreboard -->\nbottom\n")
    assert published.update_readme(readme, folder)
    assert not published.update_readme(readme, folder)
    text = readme.read_text()
    assert text.startswith("# top\n<!-- scoreboard -->\n| system |")
    assert text.endswith("|\n<!-- /scoreboard -->\nbottom\n")
    assert "shown in small: C1; not shown: C2; needs full scale: C3" in text
    assert "1 min" in text


def test_readme_without_markers_is_refused(tmp_path, registry):
    (tmp_path / "README.md").write_text("# nothing here\n")
    with pytest.raises(ValueError, match="0 pairs of markers"):
        published.update_readme(tmp_path / "README.md", tmp_path / "published")
    assert (tmp_path / "README.md").read_text() == "# nothing here\n"
