"""The doctor finds what is broken, says how to mend it, and does not cry wolf on a machine that works."""

import importlib.metadata
import json
import re
import sys
import time
from types import SimpleNamespace

import pytest

from workbench import cli, kernels, objectives
from workbench.batch import doctor
from workbench.kernels import scoring, trees


def by_name(checks) -> dict[str, doctor.Check]:
    return {check.name: check for check in checks}


@pytest.fixture(scope="module")
def tested():
    """The self-test on this machine, undisturbed, and how long it took."""
    started = time.monotonic()
    found = by_name(doctor.self_test())
    return found, time.monotonic() - started


# ----------------------------------------------------------------------------------------------------- what is there
@pytest.mark.slow
def test_the_command_names_what_is_wrong_and_how_to_mend_it(runs_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    pins = f"# pins\ntyper==0.0.1\nnobody-has-this==1.0\npytest=={pytest.__version__}"
    (tmp_path / "constraints.txt").write_text(pins)
    assert cli.main(["doctor", "--no-self-test"]) == 1
    printed = capsys.readouterr()
    assert re.search(r"WRONG packages: typer \S+, pinned 0\.0\.1\n +-> pip install", printed.out)
    assert "nobody-has-this" not in printed.out
    names = {"python", "extra ray", "extra serve", "kernel", "views", "browser", "runs folder", "disk", "gpu"}
    names |= {"scoring on cpu", "head on cpu", "sampling engines"}
    assert names <= set(re.findall(r"^\w+ +([\w ]+):", printed.out, re.MULTILINE))
    assert printed.err == "wrong: packages\n"
    assert "kernel answers" not in printed.out


@pytest.mark.slow
def test_json_holds_every_finding_with_its_remedy(runs_root, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "wrong_pins", lambda _: [])  # a newer environment is not the subject here
    assert cli.main(["doctor", "--json", "--no-self-test"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(set(item) == {"name", "fine", "found", "remedy", "needed", "mark"} for item in found)
    assert all(item["remedy"] for item in found if not item["fine"])
    assert not any("\n" in item["remedy"] or "\n" in item["found"] for item in found)


def test_pins_ignore_the_local_part_of_a_version(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"torch": "2.13.0+cpu", "x": "1.1"}[name])
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\nx==1.0 ; python_version > '3'\n")
    assert doctor.wrong_pins(tmp_path / "constraints.txt") == ["x 1.1, pinned 1.0"]


def test_an_extra_that_is_missing_is_not_wrong_but_named(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "ray":
            raise importlib.metadata.PackageNotFoundError
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    check = by_name(doctor._extras())["extra ray"]
    assert check.mark == "none"
    how = "workbench reproduce --executor ray: pip install -c constraints.txt -e '.[ray]'"
    assert check.remedy == f"for batches on a cluster: {how}"
    assert by_name(doctor._extras())["extra serve"].mark == "ok"


@pytest.mark.parametrize("lost", ["anywidget", "jupyterlab-manager"])
def test_a_lab_that_would_show_blank_views_is_wrong(monkeypatch, tmp_path, lost):
    import jupyter_core.paths

    for name in ("anywidget", "@jupyter-widgets/jupyterlab-manager"):
        if lost not in name:
            (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(jupyter_core.paths, "jupyter_path", lambda *_: [str(tmp_path)])
    monkeypatch.setattr(doctor, "_version", lambda _: "4.6")
    check = doctor._views()
    assert (check.mark, check.found.startswith("JupyterLab 4.6 without the extension of ")) == ("WRONG", True)
    monkeypatch.setattr(doctor, "_version", lambda _: "")
    assert doctor._views().mark == "none"


def test_a_kernel_of_another_environment_is_wrong(monkeypatch):
    from jupyter_client.kernelspec import KernelSpecManager

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda *_: SimpleNamespace(argv=["/old/venv/bin/python"]))
    check = doctor._kernelspec()
    assert check.mark == "WRONG"
    assert check.remedy == f"{sys.executable} -m ipykernel install --sys-prefix --name python3"


def test_a_runs_folder_that_cannot_be_used_is_wrong(tmp_path, monkeypatch):
    assert doctor._runs_folder(tmp_path / "runs").mark == "ok"
    assert list((tmp_path / "runs").iterdir()) == []
    (tmp_path / "file").touch()
    check = doctor._runs_folder(tmp_path / "file" / "runs")
    assert check.mark == "WRONG"
    assert "Not a directory" in check.found
    monkeypatch.setattr(doctor.os, "replace", lambda *_: None)  # a disk on which nothing is ever renamed
    assert doctor._runs_folder(tmp_path / "runs").mark == "WRONG"
    monkeypatch.undo()
    monkeypatch.setattr("fcntl.flock", lambda *_: None)  # a disk without locks
    assert doctor._runs_folder(tmp_path).found == f"{tmp_path}: two writers are not kept apart"


def test_a_gpu_is_told_with_memory_and_capability(monkeypatch):
    import torch

    facts = SimpleNamespace(name="H200", total_memory=150 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))
    assert doctor._gpu() == doctor.Check("gpu", True, "H200, 150 GiB, capability 9.0", doctor._gpu().remedy)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape) * 1.01)
    assert doctor._gpu().mark == "WRONG"


def test_a_wrong_name_for_the_head_is_told(monkeypatch):
    monkeypatch.setenv("WORKBENCH_HEAD", "fast")
    check = by_name(doctor._routes())["head on cpu"]
    assert (check.mark, check.remedy) == ("WRONG", "unset WORKBENCH_HEAD")


# --------------------------------------------------------------------------------------------------------- self-test
@pytest.mark.slow
def test_the_self_test_passes_here_in_time(tested):
    found, took = tested
    assert [(name, check.found) for name, check in found.items() if check.mark != "ok"] == []
    assert set(found) == {"score", "sample", "greedy", "train", "kernel answers", "self-test"}
    assert took < 30  # 10 s on two cores that do nothing else


@pytest.mark.parametrize("wrong", [1e-2, 1e-4])
def test_a_shared_route_with_wrong_numbers_is_found(monkeypatch, wrong):
    """A large error makes the kernels refuse the route by themselves, a small one goes through; both are found."""
    real = scoring._shared
    monkeypatch.setattr(scoring, "_shared", lambda *a, **k: real(*a, **k) + wrong)
    check = doctor._measured("score", doctor._score)
    assert check.mark == "WRONG"
    assert "to be trusted: install the pinned versions" in check.remedy


def test_a_block_mask_that_lets_branches_see_each_other_is_found(monkeypatch):
    monkeypatch.setattr(trees, "block_mask", lambda branch: branch[:, :, None] >= branch[:, None, :])
    assert doctor._measured("score", doctor._score).mark == "WRONG"


def test_wrong_log_probs_and_wrong_tokens_of_samples_are_found(monkeypatch):
    real = kernels.sample

    def shifted(*arguments, **options):
        drawn = real(*arguments, **options)
        for rows in drawn.token_logps:
            rows[0][0] += 1e-4
        for rows in drawn.tokens:
            rows[0][-1] = (rows[0][-1] + 1) % 64
        return drawn

    monkeypatch.setattr(kernels, "sample", shifted)
    assert doctor._measured("sample", doctor._sample).mark == "WRONG"
    assert doctor._measured("greedy", doctor._greedy).mark == "WRONG"


def test_an_objective_with_the_wrong_sign_is_found(monkeypatch):
    real = objectives.dpo
    monkeypatch.setattr(objectives, "dpo", lambda a, b, c, d, **options: real(b, a, d, c, **options))
    check = doctor._measured("train", doctor._train)
    assert check.mark == "WRONG"
    assert "DPO loss 0.693147 at the start" in check.found  # that alone would not tell


def test_an_error_inside_a_test_is_its_finding():
    def broken():
        raise ImportError("libcudart.so:\nno such file")

    assert doctor._measured("score", broken).found == "ImportError: libcudart.so: no such file"


def test_a_kernel_that_does_not_start_is_found(monkeypatch):
    from jupyter_client.manager import KernelManager

    def start(*_, **__):
        raise FileNotFoundError("no python there")

    monkeypatch.setattr(KernelManager, "start_kernel", start)
    with doctor._kernel() as answer:
        check = answer()
    assert (check.mark, check.found) == ("WRONG", "FileNotFoundError: no python there")
    assert "-m ipykernel_launcher" in check.remedy
