"""PairModel: an encoder that reads a prompt and both responses at once (PairRM's kind), from safetensors.

The text is "<source> prompt <candidate 1> a <candidate 2> b"; the states of the three marks, joined as (source, a) and
(source, b), go through one small head, and the difference of the two is the logit that a is better. The order matters
to such a model, so every pair is asked in both, and the logits are averaged.

Source: Jiang et al. 2023 (arXiv 2306.02561), the layout of the checkpoint llm-blender/PairRM-hf.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.kernels.batching import microbatches
from workbench.models import pick_device
from workbench.models.turns import apart
from workbench.runs.named_models import where

MARKS = {"source": "<|source|>", "cand1": "<|candidate1|>", "cand2": "<|candidate2|>"}
SOURCE_TOKENS, RESPONSE_TOKENS = 1224, 412  # what the checkpoint was trained to read
BATCH_TOKENS = 8192


class PairModel(nn.Module):
    """A DeBERTa encoder with a head over the states of three marks.

    Args:
        settings: of the checkpoint: a DeBERTa-v2 configuration with `source_prefix_id`, `cand1_prefix_id`,
            `cand2_prefix_id`, `n_tasks` and `drop_out`.
    """

    def __init__(self, settings: Any, tokenizer: Any, *, name: str = "pair model"):
        from transformers import DebertaV2Model

        super().__init__()
        self.name, self.tokenizer = name, tokenizer
        self.pretrained_model = DebertaV2Model(settings)
        width, drop = settings.hidden_size, nn.Dropout(settings.drop_out)
        head = [drop, nn.Linear(2 * width, width), nn.Tanh(), drop, nn.Linear(width, settings.n_tasks)]
        self.head_layer = nn.Sequential(*head)
        self.marks = {key: int(getattr(settings, f"{key}_prefix_id")) for key in MARKS}
        self.longest = min(settings.max_position_embeddings, SOURCE_TOKENS + 2 * RESPONSE_TOKENS)
        if settings.position_biased_input is False:  # relative positions alone: any length
            self.longest = SOURCE_TOKENS + 2 * RESPONSE_TOKENS

    @classmethod
    def load(cls, source: str | Path, *, device: str = "auto") -> PairModel:
        """From a folder with config.json, tokenizer and model.safetensors, or a hub id.

        Raises:
            FileNotFoundError: no such folder or model.
            ValueError: weights are missing or left over, or the tokenizer does not know the marks.
        """
        from safetensors.torch import load_file
        from transformers import AutoTokenizer, DebertaV2Config
        from transformers.utils.hub import cached_file

        source = where(str(source))
        source = str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else source
        try:
            weights = load_file(str(cached_file(source, "model.safetensors")))
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model = cls(DebertaV2Config.from_pretrained(source), tokenizer, name=source)
        except OSError as error:
            raise FileNotFoundError(
                f"cannot load a pair model from {source!r}: {str(error).splitlines()[0]}"
            ) from error
        report = model.load_state_dict(weights, strict=False)
        missing = [key for key in report.missing_keys if not key.endswith("position_ids")]
        left = [key for key in report.unexpected_keys if not key.endswith("position_ids")]
        if missing or left:
            raise ValueError(f"{source!r} is no pair model: weights missing {missing[:3]}, without a place {left[:3]}")
        for key, mark in MARKS.items():
            if apart(tokenizer, mark, special=True) != [model.marks[key]]:
                raise ValueError(f"the tokenizer of {source!r} has no token {mark} with id {model.marks[key]}")
        return model.to(pick_device(device)).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logit that the first response is better, [row]; each mark stands once in a row."""
        states = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        source, first, second = (states[input_ids == self.marks[key]] for key in MARKS)
        left, right = (self.head_layer(torch.cat([source, one], -1)) for one in (first, second))
        return (left - right).mean(-1)

    def encode(self, prompt: str, a: str, b: str) -> list[int]:
        """Token ids of a row; each part is cut at its end to its share, and no text can spell a mark."""

        def part(key: str, text: str, most: int) -> list[int]:
            start, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
            ids = [token for token in apart(self.tokenizer, text) if token not in self.marks.values()]
            return [start, self.marks[key], *ids[: most - 3], end]

        source = part("source", prompt, self.longest - 2 * RESPONSE_TOKENS)
        room = (self.longest - len(source)) // 2
        return [*source, *part("cand1", a, room), *part("cand2", b, room)]

    @torch.no_grad()
    def logits(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        """Logit that a is better, [n]: the mean of both orders."""
        rows = [self.encode(*row) for row in zip(prompts, a, b, strict=True)]
        rows += [self.encode(*row) for row in zip(prompts, b, a, strict=True)]
        device, found = next(self.parameters()).device, np.zeros(len(rows))
        for places in microbatches(range(len(rows)), list(map(len, rows)), max_tokens=BATCH_TOKENS):
            width = max(len(rows[i]) for i in places)
            ids = [rows[i] + [self.tokenizer.pad_token_id] * (width - len(rows[i])) for i in places]
            mask = [[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in places]
            given = (torch.tensor(x, device=device) for x in (ids, mask))
            found[places] = self(*given).double().cpu().numpy()
        return (found[: len(a)] - found[len(a) :]) / 2

    def prefer(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        """P(a is better than b) for each row."""
        return 1 / (1 + np.exp(-self.logits(prompts, a, b)))


def is_pair_model(source: str | Path) -> bool:
    """Whether a folder or hub id holds a checkpoint of this kind: its configuration names the marks."""
    from transformers import PretrainedConfig

    try:
        found, _ = PretrainedConfig.get_config_dict(str(Path(where(str(source))).expanduser()))
    except OSError:
        return False
    return "cand1_prefix_id" in found
