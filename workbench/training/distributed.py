"""Several processes under torchrun: what they agree on, and models cut into shards by FSDP2.

With one process every function here is the identity, so callers need no second branch.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from workbench.kernels.meeting import parts_of
from workbench.models import Policy


def world() -> int:
    """Number of processes that train together; joins torchrun's group on the first call."""
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        dist.init_process_group()
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 writes what is written once."""
    return dist.get_rank() if world() > 1 else 0


def total(values: Tensor) -> Tensor:
    """Sum over all processes."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def gather(value: Any) -> list[Any]:
    """Every process's `value`, in the order of their ranks."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor on every process, from its shards."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def to_first(tensor: Tensor) -> Tensor:
    """A copy of the whole tensor on the CPU of process 0; nothing is kept on the others."""
    gathered = whole(tensor.detach())
    return gathered.to("cpu", copy=True).contiguous() if rank() == 0 else gathered.new_empty(0)


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a tensor that is whole on every process, cut as `like` is cut."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def sharded(policy: Policy) -> Iterator[Policy]:
    """The policy with its weights cut over all processes; the policy itself with one process.

    Inside, `policy` holds no weights; on leaving, the trained ones are whole in it again on every process. After an
    error they are not: the processes no longer agree, so nothing can be gathered.

    Raises:
        ValueError: a trained weight belongs to neither the transformer nor its output embedding, or the output
            embedding has an adapter.
    """
    if world() == 1:
        yield policy
        return
    own = dict(policy.model.named_parameters())
    shared = {id(tensor): tensor for tensor in (*own.values(), *policy.model.buffers())}
    live = dataclasses.replace(policy, model=copy.deepcopy(policy.model, shared))  # the same weights, other modules
    _shard(live.model, init_device_mesh(policy.device.type, (world(),)))
    shards = {name: p for name, p in live.model.named_parameters() if isinstance(p, DTensor)}
    for name in shards:
        own[name].data = own[name].data.new_empty(0)
    yield live
    for name, shard in shards.items():
        own[name].data = whole(shard.detach())


def _shard(model: Any, mesh: DeviceMesh) -> None:
    """Cuts every layer, then what is left of the body, then the head, in place.

    The body is the root of its own, because scoring calls it and the head apart. The head stays outside FSDP's units:
    its shard is worked on where it lies (`kernels.sharded_head`). A head tied to the input embedding shares its shard;
    for the look-up of the input FSDP gathers that matrix with the rest of the body's own weights.
    """
    body, head, *_ = parts_of(model)  # met whole: in pieces its own forward pass has no output
    matrix = head.weight
    tied = next((module for module in body.modules() if getattr(module, "weight", None) is matrix), None)
    causal = model.get_base_model() if hasattr(model, "peft_config") else model
    layers = set(causal._no_split_modules or ())
    for unit in [*(module for module in body.modules() if type(module).__name__ in layers), body]:
        unit = fully_shard(unit, mesh=mesh)
        unit.set_gradient_divide_factor(1.0)  # the loss is divided by the whole batch's denominator already
        unit.set_force_sum_reduction_for_comms(True)
    if tied is not None:
        head.weight = tied.weight  # type: ignore[assignment]
    if type(head) is not nn.Linear and not hasattr(head, "modules_to_save"):
        raise ValueError("an adapter on the output embedding cannot be sharded; leave it out of target_modules")
    for module in head.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(parameter, DTensor):
                # a clone, because a view would keep the whole matrix in memory
                piece = distribute_tensor(parameter.data, mesh, [Shard(0)], src_data_rank=None).clone()
                setattr(module, name, nn.Parameter(piece, requires_grad=parameter.requires_grad))
    left = [name for name, p in model.named_parameters() if p.requires_grad and not isinstance(p, DTensor)]
    if left:
        raise ValueError(
            f"{left[0]} is trained but is neither in the transformer nor its output embedding: not sharded"
        )
