"""Process reward models: how likely each step of a solution is right, given the problem and all earlier steps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workbench.feedback.simulated import Noise
from workbench.models import pick_device
from workbench.models.pretrained import check_report
from workbench.models.turns import apart, render
from workbench.runs.named_models import where

Scores = Callable[[str, Sequence[str]], list[float]]
STEP_TOKEN = "<extra_0>"  # of Qwen2.5-Math-PRM: stands behind every step, the score is read there


def check_scores(prompt: str, steps: Sequence[str], scores: Sequence[float]) -> list[float]:
    """The scores as they are.

    Raises:
        ValueError: another number of scores than steps, or one that is missing, NaN or outside [0, 1]; problem and step
            are named.
    """
    if len(scores) != len(steps):
        raise ValueError(f"problem {prompt[:60]!r}: {len(scores)} process rewards for {len(steps)} steps")
    for i, value in enumerate(scores):
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(
                f"problem {prompt[:60]!r}, step {i}: a process reward in [0, 1] is needed; got {value!r}; look at what "
                "the reward model was given"
            )
    return list(scores)


@dataclass(frozen=True)
class SimulatedPrm:
    """A process reward model with known quality: sigmoid(c (2 ok - 1) + tau N(0, 1)), ok: all steps so far are right.

    Attributes:
        first_wrong: an oracle, see `StepVerifier`.
        certainty: c, logits.
        noise: tau, logits; infinity is a coin that knows nothing (its score is uniform).
        seed: another seed gives other noise; the same steps always get the same score.
    """

    first_wrong: Callable[[str, Sequence[str]], int | None]
    certainty: float = 2.0
    noise: float = 0.0
    seed: int = 0

    def __call__(self, prompt: str, steps: Sequence[str]) -> list[float]:
        wrong = self.first_wrong(prompt, steps)
        scores = []
        for t in range(len(steps)):
            draw = Noise(f"prm/{self.seed}/{prompt}/{''.join(steps[: t + 1])}") if self.noise else None
            if draw and math.isinf(self.noise):
                scores.append(draw.uniform())
                continue
            ok = wrong is None or t < wrong
            logit = self.certainty * (2 * ok - 1) + (self.noise * draw.normal() if draw else 0.0)
            scores.append(1 / (1 + math.exp(-logit)))
        return scores


class TokenPrm:
    """A token-classification model that is read behind every step.

    The steps are joined with a step token behind each, and the probability of the positive class (the last label; the
    sigmoid where there is one label) at these tokens is the score. Folders of token or sequence classification in the
    hub's format fit, and so does Qwen/Qwen2.5-Math-PRM-7B with its two-layer head, which is read from its safetensors.

    Raises:
        FileNotFoundError: no such model.
        ValueError: the step token is not one token of the tokenizer.
    """

    def __init__(self, source: str, *, device: str = "auto", step_token: str = STEP_TOKEN, dtype: str = "float32"):
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        source = where(source)
        try:
            if not Path(source).is_dir():
                from huggingface_hub import snapshot_download

                source = snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"])
            self.tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            how: dict[str, Any] = {"dtype": getattr(torch, dtype), "trust_remote_code": False, "use_safetensors": True}
            model, report = AutoModelForTokenClassification.from_pretrained(source, output_loading_info=True, **how)
        except (OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise FileNotFoundError(f"cannot load a process reward model from {source!r}: {reason}") from error
        head = _two_layer_head(Path(source))
        check_report(source, "process reward model", report, trained_beside=["score"] if head else [])
        if head:
            model.score = head.to(getattr(torch, dtype))
        ids = self.tokenizer(step_token, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise ValueError(
                f"{step_token!r} is {len(ids)} tokens of the tokenizer of {source}; name the step token that this model"
                " was trained with"
            )
        self.model, self.step_id = model.to(pick_device(device)).eval(), ids[0]

    @torch.no_grad()
    def __call__(self, prompt: str, steps: Sequence[str]) -> list[float]:
        """A score a step; a step is never scored without the ones before it, and never sees the ones behind it."""
        if getattr(self.tokenizer, "chat_template", None):
            ids = render(self.tokenizer, [{"role": "user", "content": prompt}], tokenize=True)
        else:
            ids = self.tokenizer(prompt).input_ids
        places = []
        for step in steps:
            ids = [*ids, *apart(self.tokenizer, step), self.step_id]
            places.append(len(ids) - 1)
        logits = self.model(input_ids=torch.tensor([ids], device=self.model.device)).logits[0, places].float()
        chosen = logits.sigmoid()[:, 0] if logits.shape[-1] == 1 else logits.softmax(-1)[:, -1]
        return check_scores(prompt, steps, chosen.tolist())


@lru_cache(maxsize=1)
def open_prm(source: str, device: str = "auto") -> TokenPrm:
    """The process reward model in a folder or of a hub id, loaded once."""
    return TokenPrm(source, device=device)


def _two_layer_head(folder: Path) -> nn.Module | None:
    """Linear, ReLU, Linear under the names score.0 and score.2, where a checkpoint has them."""
    from safetensors import safe_open

    tensors: dict[str, torch.Tensor] = {}
    index = folder / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    for name in files:
        if not (folder / name).is_file():
            continue
        with safe_open(str(folder / name), framework="pt") as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys() if key.startswith(("score.0.", "score.2."))}  # noqa: SIM118
    if not tensors:
        return None
    (hidden, width), (labels, _) = tensors["score.0.weight"].shape, tensors["score.2.weight"].shape
    head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, labels))
    head.load_state_dict({key.removeprefix("score."): value for key, value in tensors.items()})
    return head
