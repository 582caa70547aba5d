"""Two processes under torchrun on a CPU: same numbers as one, half the parameters each, checkpoints for any number."""

import json

import pytest
import torch
import two_processes
from safetensors.torch import load_file
from two_processes import KINDS, finish, launch, play

from workbench.models import add_lora
from workbench.runs.run import Run
from workbench.training import distributed


def losses(folder):
    return [row["loss"] for row in Run(folder).metrics()]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    done = launch("train_all", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_weights_are_those_of_one_process(together, tmp_path, kind):
    """9 steps, batches that do not divide, micro-batches of which a process has no row."""
    policy = play(kind, tmp_path)
    assert len(losses(tmp_path)) == 9
    assert losses(together / kind) == pytest.approx(losses(tmp_path), abs=1e-6)
    assert [row["grad_norm"] for row in Run(together / kind).metrics()] == pytest.approx(
        [row["grad_norm"] for row in Run(tmp_path).metrics()], rel=1e-4
    )
    end = load_file(together / kind / "end.safetensors")
    for name, parameter in policy.model.named_parameters():
        if name in end:  # one name of a tied matrix
            torch.testing.assert_close(end[name], parameter.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_a_shard_and_each_process_holds_half(together, kind):
    """Half to within one row of each matrix: 23 words are 12 and 11."""
    held = json.loads((together / kind / "held.json").read_text())
    assert all(process["sharded"] for process in held)
    assert sum(process["mine"] for process in held) == held[0]["all"]
    assert all(abs(process["mine"] / process["all"] - 0.5) < 0.01 for process in held)


@pytest.mark.slow
def test_a_nan_is_refused_by_all_with_the_same_words(together):
    """No process waits for ever for one that has stopped."""
    first, second = json.loads((together / "said.json").read_text())
    assert first == second
    assert "optimiser step 0: the loss is NaN or infinite for rows row 5; look at these rows" in first


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_killed_on_some_and_resumed_on_others(tmp_path, n):
    """SIGKILL of every process in step 5, after the checkpoint of step 4; 2 go on as 1, 1 goes on as 2."""
    done = launch("killed", tmp_path / "broken", 5, n=n)
    assert done.returncode != 0
    assert (tmp_path / "broken" / "checkpoint" / "state.json").is_file()
    if n == 2:
        finish(tmp_path / "broken")  # in this process
    else:
        done = launch("finish", tmp_path / "broken")
        assert done.returncode == 0, done.stderr[-3000:]
    play("plain", tmp_path / "whole", checkpoint_every=2)
    assert [row["step"] for row in Run(tmp_path / "broken").metrics()] == list(range(9))
    assert losses(tmp_path / "broken") == pytest.approx(losses(tmp_path / "whole"), abs=1e-6)
    assert not (tmp_path / "broken" / "checkpoint").exists()


def test_one_process_is_left_alone():
    policy = two_processes.new_policy("plain")
    with distributed.sharded(policy) as live:
        assert live is policy
    weight = policy.model.lm_head.weight
    assert distributed.whole(weight) is weight
    assert distributed.shard_like(weight, weight) is weight
    assert (distributed.world(), distributed.rank(), distributed.gather(3)) == (1, 0, [3])


@pytest.fixture
def alone(monkeypatch):
    """A process group of one, for what is refused before anything is exchanged."""
    import torch.distributed as dist

    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    dist.init_process_group("gloo")
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_what_cannot_be_sharded_is_refused(alone):
    policy = two_processes.new_policy("plain")
    adapted = add_lora(policy.model, r=2, target_modules=["lm_head"])
    with pytest.raises(ValueError, match="an adapter on the output embedding cannot be sharded; leave it out"):
        distributed._shard(adapted, alone)
    policy = two_processes.new_policy("plain")
    policy.model.value = torch.nn.Linear(16, 1)
    with pytest.raises(ValueError, match=r"value.weight is trained but is neither in the transformer nor"):
        distributed._shard(policy.model, alone)
