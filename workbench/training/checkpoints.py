"""Training checkpoints: weights that train, optimiser, schedule and step number, in one form for any number of
processes.

Tensors are written whole, so a checkpoint of two processes resumes on one and the other way round; all processes read
the same folder.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workbench import runs
from workbench.training import distributed


def save_weights(model: nn.Module, path: Path, *, frozen: bool = False) -> None:
    """Writes the weights that train, whole; every process calls it, process 0 writes.

    Args:
        frozen: those that do not train too, where they are not those of the start any more.
    """
    from safetensors.torch import save

    # one after another: no process holds more than one weight beyond its shards but the first
    weights = {name: distributed.to_first(p) for name, p in model.named_parameters() if frozen or p.requires_grad}
    if distributed.rank() == 0:
        with runs.atomic(path) as file:
            file.write(save(weights))


@torch.no_grad()
def load_weights(model: nn.Module, path: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(path)
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.copy_(distributed.shard_like(weights[name], parameter))


class Checkpoint:
    """One folder that appears whole or not at all."""

    def __init__(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any):
        self.folder, self.model, self.optimizer, self.scheduler = folder, model, optimizer, scheduler
        self.old = folder.with_name(".checkpoint.old")

    def store(self, step: int) -> None:
        temporary = Path()
        if distributed.rank() == 0:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=self.folder.parent, prefix=".checkpoint."))
        save_weights(self.model, temporary / "weights.safetensors")
        state = self.optimizer.state_dict()
        state["state"] = {
            number: {name: distributed.to_first(value) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        if distributed.rank() > 0:
            return
        torch.save({"optimizer": state, "scheduler": self.scheduler.state_dict()}, temporary / "optimizer.pt")
        runs.write_json(temporary / "state.json", {"step": step})
        shutil.rmtree(self.old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(self.old)
        temporary.rename(self.folder)
        shutil.rmtree(self.old, ignore_errors=True)

    def restore(self) -> int:
        """The step to go on with; 0 where there is nothing to restore.

        Raises:
            RuntimeError: the processes do not see the same checkpoint.
        """
        if distributed.rank() == 0 and self.old.exists() and not self.folder.exists():
            self.old.rename(self.folder)  # killed between the two renames
        distributed.gather(None)  # nobody looks before that is done
        step = int(runs.read_json(self.folder / "state.json")["step"]) if self.folder.exists() else 0
        if len(steps := set(distributed.gather(step))) > 1:
            raise RuntimeError(
                f"the processes see checkpoints of different steps ({sorted(steps)}) in {self.folder}; "
                "the run folder must be on a disk that all of them share"
            )
        if not step:
            return 0
        load_weights(self.model, self.folder / "weights.safetensors")
        state = torch.load(self.folder / "optimizer.pt", weights_only=True)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, values in state["optimizer"]["state"].items():
            for name, value in values.items():
                if value.shape == parameters[number].shape:
                    values[name] = distributed.shard_like(value, parameters[number])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        return step

    def remove(self) -> None:
        if distributed.rank() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
        distributed.gather(None)  # the next call must not find it
