"""Reward models: a scalar for a prompt and its response, from a transformers sequence-classification model.

Text becomes tokens as in a policy: chat template, response tokenised apart, one end token; an encoder (BERT's kind)
gets prompt and response as a pair of its own tokenizer. A score is what the model's own forward pass gives for the row
alone: where the head at the last token gives just that, which is measured on first meeting, it is read there.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable, Sequence
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
from workbench.kernels.heads import merged
from workbench.kernels.meeting import TOLERANCE, compute_dtype, resting
from workbench.models import Policy, pick_device
from workbench.models.pretrained import load_pretrained
from workbench.runs.run import Run
from workbench.training.loop import TrainConfig, train
from workbench.training.reference import model_key

log = logging.getLogger(__name__)


@dataclass
class RewardModel(Policy):
    """A ...ForSequenceClassification with one label, and its own tokenizer.

    `Policy` gives it the one way from text to tokens; it has no token distribution, so it cannot be sampled from.
    """

    name: str = "reward model"

    def __post_init__(self):
        if self.reads_pairs:
            self._turns = {}
        else:
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
            ValueError: more than one label, no scalar head, or weights that are missing, as in a language model.
        """
        source, model, tokenizer = load_pretrained(source, "reward model", dtype=getattr(torch, dtype))
        return cls(model.to(pick_device(device)), tokenizer, name=source, precision=precision)

    @classmethod
    def over(cls, policy: Policy, *, seed: int = 0) -> RewardModel:
        """The trunk of a policy (a copy of its weights) with a new scalar head that starts at 0.

        A head of 0 makes every first score and value 0, so nothing is preferred before anything was learned.
        """
        from transformers import AutoModelForSequenceClassification

        model = merged(policy.model) if hasattr(policy.model, "peft_config") else policy.model
        config = copy.deepcopy(model.config)
        config.num_labels = 1
        config.pad_token_id = None  # where it is the end token too, the library would read the token before the end
        torch.manual_seed(seed)
        classifier: Any = AutoModelForSequenceClassification.from_config(config)
        classifier.base_model.load_state_dict(model.base_model.state_dict())
        torch.nn.init.zeros_(_head(classifier).weight)
        return cls(classifier.to(policy.device), policy.tokenizer, precision=policy.precision)

    def copy(self) -> RewardModel:
        return RewardModel(copy.deepcopy(self.model), self.tokenizer, self.name, self.precision)

    # -- text to tokens
    @property
    def reads_pairs(self) -> bool:
        """Whether it is an encoder, which reads prompt and response as two segments."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

        base = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        return getattr(base.config, "model_type", "") in ENCODERS and not getattr(base.config, "is_decoder", False)

    def has_tokens_of(self, policy: Policy) -> bool:
        """Whether token ids and turns mean the same to both; else text must pass between them."""
        ours, theirs = self.tokenizer, policy.tokenizer
        return ours is theirs or (
            not self.reads_pairs
            and ours.get_vocab() == theirs.get_vocab()
            and getattr(ours, "chat_template", None) == getattr(theirs, "chat_template", None)
            and self.turn == policy.turn
        )

    def group(
        self,
        prompt: Any,
        responses: Sequence[str | list[int]],
        *,
        max_length: int = 0,
        max_prompt_length: int = 0,
    ) -> Group:
        """As `Policy.group`; an encoder's prompt is its first segment, and its responses the second."""
        if not self.reads_pairs:
            return super().group(prompt, responses, max_length=max_length, max_prompt_length=max_prompt_length)
        if not isinstance(prompt, str):
            if len(prompt) != 1 or prompt[0]["role"] != "user":
                raise ValueError(
                    f"{self.name} is an encoder of one question and one answer; it cannot read a chat of turns"
                )
            prompt = prompt[0]["content"]
        rows = []
        for text in responses:
            if not isinstance(text, str):
                raise ValueError(f"{self.name} has a tokenizer of its own; give responses as text, not as token ids")
            most = min(max_length or self.max_length, self.max_length)
            found = self.tokenizer(prompt, text, truncation="longest_first", max_length=most)
            self.counts["rows_cut"] += len(self.tokenizer(prompt, text).input_ids) > most
            second = [i for i, part in enumerate(found.sequence_ids()) if part == 1]
            start = second[0] if second else len(found.input_ids) - 1
            rows.append((found.input_ids[:start], found.input_ids[start:]))
        if len({tuple(start) for start, _ in rows}) > 1:  # the prompt was cut for a long response
            raise ValueError(f"{self.name} cuts the prompt differently for its responses; give them one at a time")
        return Group(rows[0][0], [response for _, response in rows])

    # -- numbers
    def values(self, groups: Sequence[Group]) -> Float[Tensor, "row tok"]:
        """The head at the token before each response token: what a critic expects from there; 0 behind the end.

        Groups have one response each. Differentiable.

        Raises:
            ValueError: the model has no value at every token (an encoder, a head on a pooled state).
        """
        if not self._reads_at_end():
            raise ValueError(
                f"{self.name} scores whole texts; a critic needs a decoder with a linear head on every token"
            )
        hidden, starts, lengths = self._hidden(groups)
        places = starts[:, None] - 1 + torch.arange(int(lengths.max()), device=hidden.device)
        is_token = torch.arange(int(lengths.max()), device=hidden.device) < lengths[:, None]
        rows = hidden.gather(1, places.clamp(max=hidden.shape[1] - 1)[..., None].expand(-1, -1, hidden.shape[-1]))
        return _head(self.model)(rows).squeeze(-1) * is_token

    def rewards(self, groups: Sequence[Group]) -> Float[Tensor, " row"]:
        """The model's own score of each group's prompt and response (groups have one response each). Differentiable."""
        if not self._reads_at_end():
            return self._own_rewards(groups)
        return self._head_at_end(groups)

    def _head_at_end(self, groups: Sequence[Group]) -> Tensor:
        hidden, starts, lengths = self._hidden(groups)
        last = hidden[torch.arange(len(groups), device=hidden.device), starts + lengths - 1]
        return _head(self.model)(last).squeeze(-1)

    @torch.no_grad()
    def score(self, prompts: Sequence[Any], responses: Sequence[str | list[int]]) -> np.ndarray:
        """Rewards [n] of responses as texts (the turn's end is appended) or as its own token ids (taken as they are).

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

    def score_samples(
        self, policy: Policy, prompts: Sequence[Any], ids: Sequence[list[int]], texts: Sequence[str]
    ) -> np.ndarray:
        """Rewards [n] of what a policy wrote: by its token ids where both have the same tokens, else by its texts."""
        return self.score(prompts, ids if self.has_tokens_of(policy) else texts)

    def _hidden(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor, Tensor]:
        """Last hidden states of one row a group, padded on the right; its response's start and length."""
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

    def _own_rewards(self, groups: Sequence[Group]) -> Tensor:
        """The model's own pooling and head. Rows without a padding token are scored alone."""
        texts = [(group.prompt_ids, group.responses_ids[0]) for group in groups]
        pad = self.model.config.get_text_config().pad_token_id
        if pad is None and len(texts) > 1:
            return torch.cat([self._own_rewards([group]) for group in groups])
        width = max(len(prompt) + len(response) for prompt, response in texts)

        def rows(of: Callable[[list[int], list[int]], list[int]], fill: int) -> Tensor:
            found = [of(*text) for text in texts]
            return torch.tensor([row + [fill] * (width - len(row)) for row in found], device=self.device)

        given = {
            "input_ids": rows(lambda prompt, response: prompt + response, pad or 0),
            "attention_mask": rows(lambda prompt, response: [1] * len(prompt + response), 0),
        }
        if self.reads_pairs and "token_type_ids" in self.tokenizer.model_input_names:
            given["token_type_ids"] = rows(lambda prompt, response: [0] * len(prompt) + [1] * len(response), 0)
        return self.model(**given).logits[:, 0]

    def _reads_at_end(self) -> bool:
        """Whether the head at the last token gives the model's own score of each row alone, measured on two rows that
        end as rows do; once a model."""
        if self.model not in _met:
            _met[self.model] = self._measure()
        return _met[self.model]

    @torch.no_grad()
    def _measure(self) -> bool:
        if self.reads_pairs or _head_or_none(self.model) is None:
            return False
        n_ids = self.model.get_input_embeddings().weight.shape[0]
        generator = torch.Generator().manual_seed(0)
        groups = [Group(torch.randint(n_ids, (n,), generator=generator).tolist(), [[self.end_id]]) for n in (8, 4)]
        weight = _head(self.model).weight
        with resting(self.model):
            kept = weight.data  # a new head is zero, and would agree with anything
            weight.data = torch.linspace(-1, 1, weight.numel()).view_as(weight).to(weight)
            try:
                own = torch.cat([self.model(input_ids=self._ids(group)).logits[:, 0] for group in groups])
                ours = self._head_at_end(groups)
            finally:
                weight.data = kept
        tolerance = TOLERANCE[compute_dtype(self.model)] * max(1.0, float(own.abs().max()))
        return not own.isfinite().all() or float((own - ours).abs().max()) <= tolerance

    def _ids(self, group: Group) -> Tensor:
        return torch.tensor([group.prompt_ids + group.responses_ids[0]], device=self.device)


_met: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def _head_or_none(model: Any) -> Any:
    causal = model.get_base_model() if hasattr(model, "peft_config") else model
    head = getattr(causal, "score", None) or getattr(causal, "classifier", None)
    return head if hasattr(head, "weight") or hasattr(head, "modules_to_save") else None


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
