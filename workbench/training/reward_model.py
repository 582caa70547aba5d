"""Reward models: a scalar for a prompt and its response, from a transformers sequence-classification model.

Text becomes tokens exactly as in a policy: chat template, response tokenised apart, one end token. The score is read at
the last token of prompt and response.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench import objectives, runs
from workbench.kernels import Group, without_cost
from workbench.kernels.batching import microbatches, n_tokens, tokens_per_microbatch
from workbench.models import Policy, pick_device
from workbench.runs.run import Run
from workbench.training.loop import TrainConfig, train
from workbench.training.reference import model_key

log = logging.getLogger(__name__)


@dataclass
class RewardModel(Policy):
    """A ...ForSequenceClassification with one label, and the tokenizer of the policies it scores.

    `Policy` gives it the one way from text to tokens; it has no token distribution, so it cannot be sampled from.
    """

    name: str = "reward model"

    def __post_init__(self):
        super().__post_init__()
        labels = getattr(self.model.config, "num_labels", None)
        if labels != 1:
            raise ValueError(f"a reward model has one label (num_labels=1); {self.name} has {labels}")

    @classmethod
    def load(
        cls, source: str | Path, *, device: str = "auto", dtype: str = "float32", precision: str = "no"
    ) -> RewardModel:  # type: ignore[override]
        """From a folder in the hub's format or a hub id.

        Raises:
            FileNotFoundError: no such folder or model.
            ValueError: more than one label, or no scalar head.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        source = str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else str(source)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model = AutoModelForSequenceClassification.from_pretrained(
                source, dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"cannot load a reward model from {source!r}: {str(error).strip().splitlines()[0]}. Give a folder in"
                " the hub's format with a sequence-classification model, or a hub id that can be reached"
            ) from error
        return cls(model.to(pick_device(device)), tokenizer, name=source, precision=precision)

    @classmethod
    def over(cls, policy: Policy, *, seed: int = 0) -> RewardModel:
        """The trunk of a policy (a copy of its weights) with a new scalar head that starts at 0.

        A head of 0 makes every first score and value 0, so nothing is preferred before anything was learned.
        """
        from transformers import AutoModelForSequenceClassification

        model = copy.deepcopy(policy.model).merge_and_unload() if hasattr(policy.model, "peft_config") else policy.model
        config = copy.deepcopy(model.config)
        config.num_labels = 1
        torch.manual_seed(seed)
        classifier: Any = AutoModelForSequenceClassification.from_config(config)
        classifier.base_model.load_state_dict(model.base_model.state_dict())
        torch.nn.init.zeros_(_head(classifier).weight)
        return cls(classifier.to(policy.device), policy.tokenizer, precision=policy.precision)

    def copy(self) -> RewardModel:
        return RewardModel(copy.deepcopy(self.model), self.tokenizer, self.name, self.precision)

    # -- numbers
    def values(self, groups: Sequence[Group]) -> Float[Tensor, "row tok"]:
        """The head at the token before each response token: what a critic expects from there; 0 behind the end.

        Groups have one response each. Differentiable.
        """
        hidden, starts, lengths = self._hidden(groups)
        places = starts[:, None] - 1 + torch.arange(int(lengths.max()), device=hidden.device)
        is_token = torch.arange(int(lengths.max()), device=hidden.device) < lengths[:, None]
        rows = hidden.gather(1, places.clamp(max=hidden.shape[1] - 1)[..., None].expand(-1, -1, hidden.shape[-1]))
        return _head(self.model)(rows).squeeze(-1) * is_token

    def rewards(self, groups: Sequence[Group]) -> Float[Tensor, " row"]:
        """The head at the last token of each group's response (groups have one response each). Differentiable."""
        hidden, starts, lengths = self._hidden(groups)
        last = hidden[torch.arange(len(groups), device=hidden.device), starts + lengths - 1]
        return _head(self.model)(last).squeeze(-1)

    @torch.no_grad()
    def score(self, prompts: Sequence[Any], responses: Sequence[str | list[int]]) -> np.ndarray:
        """Rewards [n] of responses as texts (one end token is appended) or as token ids (taken as they are).

        Raises:
            FloatingPointError: a reward is NaN or infinite; the rows are named.
        """
        groups = [self.group(prompt, [response]) for prompt, response in zip(prompts, responses, strict=True)]
        found = np.zeros(len(groups))
        self.model.eval()
        sizes = [n_tokens(group) for group in groups]
        for part in microbatches(range(len(groups)), sizes, max_tokens=2 * tokens_per_microbatch(self.device)):
            with self.autocast():
                found[part] = self.rewards([groups[i] for i in part]).double().cpu().numpy()
        if len(bad := np.flatnonzero(~np.isfinite(found))):
            raise FloatingPointError(f"the reward of rows {', '.join(map(str, bad[:10]))} is NaN or infinite")
        return found

    def _hidden(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor, Tensor]:
        """Last hidden states of one row a group, padded on the right, and where its response starts and how long it is.

        The model's own pooling is not used: it takes the last token that is not padding, and where the padding token is
        the end token that is the token before the end.
        """
        if not all(len(group.responses_ids) == 1 for group in groups):
            raise ValueError("reward models score groups with one response each")
        texts = [group.prompt_ids + group.responses_ids[0] for group in groups]
        width = max(map(len, texts))
        ids = torch.tensor([text + text[-1:] * (width - len(text)) for text in texts], device=self.device)
        model = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        starts = torch.tensor([len(group.prompt_ids) for group in groups], device=self.device)
        lengths = torch.tensor([len(group.responses_ids[0]) for group in groups], device=self.device)
        return hidden, starts, lengths


def _head(model: Any) -> Any:
    causal = model.get_base_model() if hasattr(model, "peft_config") else model
    head = getattr(causal, "score", None) or getattr(causal, "classifier", None)
    if head is None:
        raise ValueError(f"{type(causal).__name__} has no scalar head named `score` or `classifier`")
    return head


def reward_step(model: Any, batch: Sequence[Group]) -> tuple[Tensor, dict[str, Tensor]]:
    """A training step over groups of two responses, the chosen one first."""
    sides = [Group(group.prompt_ids, [group.responses_ids[side]]) for side in (0, 1) for group in batch]
    with model.autocast():
        rewards = model.rewards(sides)
    return objectives.bradley_terry(rewards[: len(batch)].float(), rewards[len(batch) :].float())


def train_reward_model(
    start: Policy | RewardModel,
    rows: Sequence[dict],
    config: TrainConfig,
    *,
    seed: int,
    run: Run | None = None,
    test_rows: Sequence[dict] = (),
    max_length: int = 0,
) -> tuple[RewardModel, float]:
    """A reward model trained on pairs, and its accuracy on held-out pairs (NaN without any).

    Args:
        start: a policy, whose trunk is copied and gets a new head; or a reward model, which is copied and trained on.
        rows: with `prompt`, `chosen`, `rejected`.
    """
    model = start.copy() if isinstance(start, RewardModel) else RewardModel.over(start, seed=seed)

    def groups(rows: Sequence[dict]) -> list[Group]:
        return [model.group(row["prompt"], [row["chosen"], row["rejected"]], max_length=max_length) for row in rows]

    with without_cost():  # a meter counts the steps of the policy, and a stored model must cost the same as a new one
        train(model, groups(rows), reward_step, config, run, seed=seed)
    return model, accuracy(model, test_rows) if test_rows else float("nan")


def trained_once(
    start: Policy,
    rows: Sequence[dict],
    config: TrainConfig,
    *,
    seed: int,
    test_rows: Sequence[dict],
    max_length: int = 0,
) -> tuple[RewardModel, float]:
    """`train_reward_model`, made once for its pairs, start, settings and seed, and loaded from then on."""

    def build(folder: Path) -> None:
        model, accuracy = train_reward_model(start, rows, config, seed=seed, test_rows=test_rows, max_length=max_length)
        model.save(folder)
        runs.write_json(folder / "accuracy.json", accuracy)

    key = {
        "kind": "reward-model",
        "code": runs.code_hash(__name__),
        "seed": seed,
        "rows": rows,
        "test": test_rows,
        "start": model_key(start),
        "training": asdict(config),
        "max_length": max_length,
    }
    folder = runs.cached_folder(key, build)
    model = RewardModel.load(folder, device=start.device.type, precision=start.precision)
    return model, runs.read_json(folder / "accuracy.json")


def accuracy(model: RewardModel, rows: Sequence[dict]) -> float:
    """Share of pairs whose chosen response has the higher reward; equal rewards count as wrong."""
    prompts = [row["prompt"] for row in rows]
    chosen = model.score(prompts, [row["chosen"] for row in rows])
    return float(np.mean(chosen > model.score(prompts, [row["rejected"] for row in rows])))
