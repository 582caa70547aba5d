"""Reference log-probs: computed once a row, kept on disk by content, shared between runs.

The cache is `runs/.cache/reference-logps/<hash of the model>/`: one small file for each call that computed something,
written whole under a name of its own, so that processes never write to the same file. A row's key is the hash of its
tokens, so data sets share the rows they share. The folder is kept below `LIMIT` bytes, least recently used files
leave first, and it can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from workbench import runs
from workbench.kernels import Group, score
from workbench.kernels.batching import microbatches, n_tokens, tokens_per_microbatch
from workbench.models import Policy
from workbench.training import distributed

log = logging.getLogger(__name__)

VERSION = 1  # of what a stored number means: raise it when `score` changes more than its rounding
LIMIT = 2**30  # bytes of all cached numbers, 45 million responses
# The disk is asked where the pass is expensive: from 2 x parameters x tokens operations on, about 20 s of a CPU core,
# and from so many tokens on that hashing the model, which costs as much as scoring 150 of them there, is lost in it.
WORTH = 1e12
MIN_TOKENS = 15_000
_RECORD = np.dtype([("key", "V16"), ("logp", "<f8")])


class PairRow(NamedTuple):
    """A tokenised pair: responses chosen and rejected, and their log-probs under the reference, nats.

    `targets` are numbers of this pair that its objective takes by name (win rates, say).
    """

    id: str
    group: Group
    reference_logps: tuple[float, float]
    targets: Mapping[str, float] = MappingProxyType({})


def pair_rows(reference: Policy, ids: Sequence[str], groups: Sequence[Group]) -> list[PairRow]:
    """Tokenised pairs (chosen first) with their log-probs under the reference as it is now.

    On several processes all of them call it, each computes a part, and all return all rows.

    Raises:
        FloatingPointError: the reference gives NaN or infinite log-probs; the rows are named, nothing is zeroed.
    """
    logps = np.empty((len(groups), 2))
    own = reference_logps(reference, groups[distributed.rank() :: distributed.world()])
    for number, part in enumerate(distributed.gather(own)):
        logps[number :: distributed.world()] = part.reshape(-1, 2)
    bad = [str(id) for id, fine in zip(ids, np.isfinite(logps), strict=True) if not fine.all()]
    if bad:
        raise FloatingPointError(
            f"the reference gives NaN or infinite log-probs to {', '.join(bad[:10])}; look at these rows first"
        )
    return [PairRow(id, group, (float(c), float(r))) for id, group, (c, r) in zip(ids, groups, logps, strict=True)]


def reference_logps(policy: Policy, groups: Sequence[Group]) -> np.ndarray:
    """log p(response | prompt) of every response under the policy as it is now, [group, k] in nats, float64.

    Computed from the very weights that training starts from, before it starts. So the reference cannot be a base model
    without its adapter by mistake, and no second model is held during training; for a base model under an adapter pass
    `policy.without_adapter()`. Where the pass is expensive its numbers are kept on disk.
    """
    found = np.full((len(groups), max((len(g.responses_ids) for g in groups), default=0)), np.nan)
    places = [(i, k) for i, group in enumerate(groups) for k in range(len(group.responses_ids))]
    cache = _Cache(policy) if _worth_keeping(policy, groups) else None
    keys = [_row_key(groups[i], k) for i, k in places] if cache else []
    if cache:
        known = cache.load()
        for place, key in zip(places, keys, strict=True):
            found[place] = known.get(key, np.nan)
    missing = [place for place in places if np.isnan(found[place])]
    _compute(policy, groups, missing, found)
    if cache and missing:
        gone = set(missing)
        cache.store({key: found[p] for p, key in zip(places, keys, strict=True) if p in gone and np.isfinite(found[p])})
    return found


@torch.no_grad()
def _compute(policy: Policy, groups: Sequence[Group], missing: Sequence[tuple[int, int]], found: np.ndarray) -> None:
    wanted: dict[int, list[int]] = {}
    for i, k in missing:
        wanted.setdefault(i, []).append(k)
    parts = {i: groups[i]._replace(responses_ids=[groups[i].responses_ids[k] for k in ks]) for i, ks in wanted.items()}
    sizes = [n_tokens(group) for group in groups]
    was_training = policy.model.training
    policy.model.eval()
    for batch in microbatches(list(parts), sizes, max_tokens=tokens_per_microbatch(policy.device)):
        sums = score(policy, [parts[i] for i in batch], check=False).sums.double().cpu()
        if not bool(sums.isfinite().all()):  # what is packed with a NaN may have caught it: one row at a time
            k = sums.shape[1]
            alone = [score(policy, [parts[i]], route="padded", check=False).sums.double().cpu() for i in batch]
            sums = torch.cat([torch.nn.functional.pad(one, (0, k - one.shape[1])) for one in alone])
        for i, row in zip(batch, sums.tolist(), strict=True):
            found[i, wanted[i]] = row[: len(wanted[i])]
    policy.model.train(was_training)


def _worth_keeping(policy: Policy, groups: Sequence[Group]) -> bool:
    parameters = list(policy.model.parameters())
    if any(isinstance(p, DTensor) for p in parameters):
        return False  # a shard's bytes do not name the model
    tokens = sum(map(n_tokens, groups))
    return tokens >= MIN_TOKENS and 2.0 * sum(p.numel() for p in parameters) * tokens >= WORTH


def _row_key(group: Group, k: int) -> bytes:
    tokens = [len(group.prompt_ids), *group.prompt_ids, *group.responses_ids[k]]
    name = hashlib.blake2b(np.array(tokens, "<i8").tobytes(), digest_size=16)
    if group.prompt_positions is not None:
        name.update(b"positions" + np.array(group.prompt_positions, "<i8").tobytes())
    if group.features is not None:
        name.update(b"features" + _tensor_hash(group.features.detach()))
    return name.digest()


# ----------------------------------------------------------------------------------------------------- the model's name
def model_key(policy: Policy) -> str:
    """Hash of all that decides a log-prob but the tokens: weights and buffers bit for bit, configuration, precision,
    and which adapters are on. An adapter that is off has no part in it."""
    off: list[str] = []
    state: list[object] = []
    for name, module in policy.model.named_modules():
        disabled = getattr(module, "disable_adapters", None)
        if disabled is True:  # a layer of peft; transformers' models have a method of that name
            off.append(name + ".")
        elif disabled is False:
            state.append((name, list(module.active_adapters), getattr(module, "scaling", None)))
    config = policy.model.config.to_dict()
    config.pop("_name_or_path", None)
    tensors = {
        name: tensor.detach()
        for name, tensor in (*policy.model.named_parameters(), *policy.model.named_buffers())
        if all(
            not name.startswith(layer) or name.startswith((layer + "base_layer.", layer + "original_module."))
            for layer in off
        )
    }
    shapes = [(name, str(tensor.dtype), [*tensor.shape]) for name, tensor in tensors.items()]
    facts = json.dumps([VERSION, policy.precision, config, state, shapes], sort_keys=True, default=str)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = pool.map(_tensor_hash, tensors.values())
        return hashlib.blake2b(facts.encode() + b"".join(parts), digest_size=16).hexdigest()


def _tensor_hash(tensor: Tensor) -> bytes:
    raw = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(raw, digest_size=16).digest()  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------- on disk
class _Cache:
    """The stored numbers of one model. A file is a digest of what follows, then records of key and log-prob."""

    def __init__(self, policy: Policy):
        self.root = runs.default_root() / ".cache" / "reference-logps"
        self.folder = self.root / model_key(policy)

    def load(self) -> dict[bytes, float]:
        known: dict[bytes, float] = {}
        for path in sorted(self.folder.glob("*.bin")):
            with suppress(FileNotFoundError):  # another process made room
                raw = path.read_bytes()
                os.utime(path)
                if hashlib.blake2b(raw[64:]).digest() != raw[:64]:
                    log.warning("%s is damaged: deleted, its log-probs are computed again", path)
                    path.unlink(missing_ok=True)
                    continue
                records = np.frombuffer(raw, _RECORD, offset=64)
                known.update(zip(records["key"].tolist(), records["logp"].tolist(), strict=True))
        return known

    def store(self, values: dict[bytes, float]) -> None:
        records = np.array(list(values.items()), _RECORD).tobytes()
        try:
            with runs.atomic(self.folder / f"{uuid.uuid4().hex}.bin") as file:
                file.write(hashlib.blake2b(records).digest() + records)
        except OSError as error:
            log.warning("reference log-probs are not kept: %s", error)
        _make_room(self.root)


def _make_room(root: Path) -> None:
    stats: list[tuple[float, int, Path]] = []
    for path in root.glob("*/*.bin"):
        with suppress(FileNotFoundError):
            stats.append((path.stat().st_mtime, path.stat().st_size, path))
    excess = sum(size for _, size, _ in stats) - LIMIT
    for _, size, path in sorted(stats):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size
