"""What each of two processes does in the tests of shards; started by torchrun through `launch`.

Arguments: the name of a function here, then its own. Process 0 writes what the test reads.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist


def launch(name, *arguments, n=2, timeout=240):
    """Runs a function of this file on `n` processes; returns the finished launcher with its output as text."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(n), "--standalone", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    given = {"env": environment, "capture_output": True, "text": True, "timeout": timeout, "check": False}
    return subprocess.run([*command, name, *map(str, arguments)], **given)


# ----------------------------------------------------------------------------------------------------- training
KINDS = ("plain", "lora", "tied")


def new_policy(kind):
    from workbench.models import Policy, add_lora, new_llama
    from workbench.worlds.language import word_tokenizer

    tokenizer = word_tokenizer([f"s{i}" for i in range(21)])  # 23 words: shards of unequal size
    model = new_llama(tokenizer, width=16, layers=2, heads=2, max_length=32, seed=0)
    if kind == "tied":
        model.lm_head.weight = model.model.embed_tokens.weight
    if kind == "lora":
        torch.manual_seed(1)
        model = add_lora(model, r=2)
    return Policy(model, tokenizer)


def play(kind, folder, *, n_rows=21, step=None, **changes):
    """9 steps of 8, 8 and 5 rows, in micro-batches of about 40 tokens on a process."""
    from test_loop import SPIN, groups

    from workbench.runs.run import Run
    from workbench.training.loop import TrainConfig, train
    from workbench.training.reference import pair_rows

    policy = new_policy(kind)
    rows = pair_rows(policy, [f"row {i}" for i in range(n_rows)], groups(n_rows))
    config = TrainConfig(learning_rate=1e-2, batch_size=8, epochs=3, micro_batch_tokens=40, **changes)
    train(policy, rows, step or SPIN, config, Run(Path(folder)))
    return policy


def train_all(folder):
    """Every kind of model; what each process held inside a step, and the whole weights afterwards. Then a NaN."""
    from safetensors.torch import save_file
    from test_loop import SPIN
    from torch.distributed.tensor import DTensor

    for kind in KINDS:
        held = []

        def step(policy, batch, held=held):
            parameters = list(policy.model.parameters())
            held.append(
                {
                    "sharded": all(isinstance(p, DTensor) for p in parameters),
                    "mine": sum(p.to_local().numel() for p in parameters),
                    "all": sum(p.numel() for p in parameters),
                }
            )
            return SPIN(policy, batch)

        policy = play(kind, Path(folder) / kind, step=step)
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, held[0])
        if dist.get_rank() == 0:
            (Path(folder) / kind / "held.json").write_text(json.dumps(everyone))
            weights = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
            save_file(weights, Path(folder) / kind / "end.safetensors")
    refuse(folder)


def refuse(folder):
    """A NaN in a row that only one process holds, in each step that has one: both must say so, with the same words."""
    from test_loop import SPIN, groups

    from workbench.training.loop import TrainConfig, train
    from workbench.training.reference import pair_rows

    policy = new_policy("plain")
    rows = pair_rows(policy, [f"row {i}" for i in range(8)], groups(8))
    rows[5] = rows[5]._replace(reference_logps=(float("nan"), 0.0))
    try:
        train(policy, rows, SPIN, TrainConfig(batch_size=8))
        said = ""
    except FloatingPointError as error:
        said = str(error)
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, said)
    if dist.get_rank() == 0:
        (Path(folder) / "said.json").write_text(json.dumps(everyone))


def killed(folder, steps):
    """Both processes kill themselves in optimiser step number `steps`."""
    from test_loop import SPIN

    folder = Path(folder)

    def step(policy, batch):
        if len(
            (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
        ) >= int(steps):
            os.kill(os.getpid(), signal.SIGKILL)
        return SPIN(policy, batch)

    play("plain", folder, step=step, checkpoint_every=2)


def finish(folder):
    play("plain", folder, checkpoint_every=2)


# ----------------------------------------------------------------------------------------------------- the head
def head(folder):
    """Sharded head against the plain one on the tokens of both processes, in float64; worst differences."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    from workbench.kernels.sharded_head import sharded_token_logps

    dist.init_process_group("gloo")
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (dist.get_world_size(),))
    rng, worst = np.random.default_rng(0), {}
    for lengths in [(5, 9), (0, 4), (7, 7), (0, 0)]:
        for scale, cap, biased in [(1.0, None, False), (1.0, None, True), (1.7, 3.0, True)]:
            for tile in (2**22, 60):  # 60 logits: 2 tokens a chunk
                weight, bias = torch.tensor(rng.normal(size=(23, 8))), torch.tensor(rng.normal(size=23))
                hidden = [torch.tensor(rng.normal(size=(n, 8))) for n in lengths]
                targets = [torch.tensor(rng.integers(0, 23, n)) for n in lengths]
                slopes = [torch.tensor(rng.normal(size=n)) for n in lengths]

                plain = [t.clone().requires_grad_() for t in (*hidden, weight, bias)]
                logps = []
                for h, t in zip(plain, targets, strict=False):
                    logits = scale * (h @ plain[-2].T + (plain[-1] if biased else 0))
                    logits = cap * torch.tanh(logits / cap) if cap else logits
                    logps.append(logits.log_softmax(-1).gather(-1, t[:, None]).squeeze(-1))
                sum((l * s).sum() for l, s in zip(logps, slopes, strict=True)).backward()

                own = hidden[rank].clone().requires_grad_()
                shards = [torch.nn.Parameter(distribute_tensor(t, mesh, [Shard(0)])) for t in (weight, bias)]
                found = sharded_token_logps(
                    own, targets[rank], shards[0], shards[1] if biased else None, scale=scale, cap=cap, tile=tile
                )
                (found * slopes[rank]).sum().backward()
                pairs = {"logps": (found, logps[rank]), "d_hidden": (own.grad, plain[rank].grad)}
                pairs |= {"d_weight": (shards[0].grad.full_tensor(), plain[-2].grad)}
                if biased:
                    pairs["d_bias"] = (shards[1].grad.full_tensor(), plain[-1].grad)
                assert shards[0].grad.placements == shards[0].placements
                for name, (a, b) in pairs.items():
                    worst[name] = max(worst.get(name, 0.0), float((a - b).detach().abs().max()) if a.numel() else 0.0)

    frozen = distribute_tensor(weight, mesh, [Shard(0)])  # as under LoRA: only the hidden states have a gradient
    own = hidden[rank].clone().requires_grad_()
    sharded_token_logps(own, targets[rank], frozen).sum().backward()
    refused = ""
    try:
        sharded_token_logps(own, targets[rank], distribute_tensor(weight, mesh, [Shard(1)]))
    except ValueError as error:
        refused = str(error)
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, worst)
    if rank == 0:
        (Path(folder) / "worst.json").write_text(json.dumps({"worst": everyone, "refused": refused}))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "training")]
    torch.set_num_threads(1)
    globals()[sys.argv[1]](*sys.argv[2:])
    if dist.is_initialized():
        dist.destroy_process_group()
    os._exit(0)  # now and then a thread of torch aborts an interpreter that is shutting down
