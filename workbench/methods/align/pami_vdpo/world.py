"""Clips: questions about six objects in a row, and a model that sees them but leans on a habit. PaMi-VDPO.

A clip is 6 frames with different objects of 14. HAS(o): is o in the clip? EARLY(o): is it in the first half? The oracle
answers for any clip, an altered one too, so a *false rejection* (the altered clip has the same answer) is certain.
Objects 0 to 6 are common, 7 to 13 rare; the planted habit says yes for common and no for rare ones. The start first
learns to look ("grounded"), then sees questions whose truth always agrees with the habit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from workbench import runs
from workbench.data import Row
from workbench.kernels import Group
from workbench.models import Policy, pick_device
from workbench.training.loop import TrainConfig, train
from workbench.training.reference import reference_logps
from workbench.training.steps import supervised_step
from workbench.worlds.language import word_tokenizer

OBJECTS, FRAMES, COMMON = 14, 6, 7
QUESTIONS = ("HAS", "EARLY")
BLANK, IMAGE = "-", "<image>"
GROUNDED = 0.93  # accuracy on balanced questions that the first stage must reach
SPLITS = {"train": 1, "test": 2, "balanced": 3, "check": 4}


@dataclass(frozen=True)
class Clips:
    """The world and its start.

    Attributes:
        n_triples: of the alignment set; all agree with the habit, so supervised training cannot help.
        n_test: clips of each of the four test sets.
        grounded_steps: of stage 1, 64 of 4,000 balanced questions each. The pilot's 900 were enough for its own
            model; this one, a real class with short convolutions, needs some more and a falling rate to reach
            `GROUNDED`.
        habit_steps: of stage 2.
    """

    n_triples: int = 600
    n_test: int = 600
    grounded_steps: int = 1_500
    habit_steps: int = 300
    width: int = 48
    device: str = "cpu"
    name: str = "clips"
    blank: str = BLANK

    # -- truth
    def truth(self, evidence: Sequence[str], prompt: str) -> str:
        """ "yes" or "no", for any clip."""
        question, thing = prompt.split()
        seen = list(evidence) if question == "HAS" else list(evidence)[: len(evidence) // 2]
        return "yes" if thing in seen else "no"

    def habit(self, prompt: str) -> str:
        return "yes" if int(prompt.split()[1][1:]) < COMMON else "no"

    def questions(
        self,
        n: int,
        rng: np.random.Generator,
        *,
        question: str = "",
        habit: bool | None = None,
        answer: str = "",
        clips: Sequence[list[str]] = (),
    ) -> list[Row]:
        """`n` rows; half of the answers are yes unless `answer` says. `habit`: does the truth agree with it."""
        rows: list[Row] = []
        while len(rows) < n:
            clip = list(clips[len(rows)]) if len(clips) else [f"o{i}" for i in rng.permutation(OBJECTS)[:FRAMES]]
            kind, wanted = question or QUESTIONS[rng.integers(2)], answer or ("yes", "no")[rng.integers(2)]
            fitting = [
                prompt
                for prompt in (f"{kind} o{i}" for i in range(OBJECTS))
                if self.truth(clip, prompt) == wanted and (habit is None or (self.habit(prompt) == wanted) == habit)
            ]
            if fitting:
                prompt = fitting[rng.integers(len(fitting))]
                rows.append({"evidence": clip, "prompt": prompt, "response": wanted, "kind": kind})
            elif len(clips):
                raise ValueError(f"no {kind} question with answer {wanted} fits the clip {clip}")
        return rows

    # -- the task
    def triples(self, split: str, seed: int) -> list[Row]:
        return self.questions(self.n_triples, np.random.default_rng([SPLITS[split], seed]), habit=True)

    def group(self, policy: Policy, evidence: Sequence[str], prompt: str, response: str) -> Group:
        """An answer is one token; no EOS token, which would halve every divergence."""
        return Group(policy.encode_prompt(" ".join([*evidence, prompt])), [policy.encode_part(response)])

    def embed(self, policy: Policy, evidence: Sequence[str]) -> np.ndarray:
        """One indicator an object: what the pooled features of two clips share is the objects that they share."""
        return np.array([[frame == f"o{i}" for i in range(OBJECTS)] for frame in evidence], float)

    def answers(self, policy: Policy, rows: Sequence[Row]) -> list[str]:
        """The likelier of yes and no."""
        groups = []
        for row in rows:
            group = self.group(policy, row["evidence"], row["prompt"], "yes")
            groups.append(group._replace(responses_ids=[*group.responses_ids, policy.encode_part("no")]))
        logps = reference_logps(policy, groups)
        return np.where(logps[:, 0] > logps[:, 1], "yes", "no").tolist()

    def accuracy(self, policy: Policy, rows: Sequence[Row]) -> float:
        return float(np.mean([a == row["response"] for a, row in zip(self.answers(policy, rows), rows, strict=True)]))

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]:
        """Accuracy by question and habit, paired accuracy (a basic and a hallucinated question about the same clip,
        both must be right, both against the habit) and yes-bias (share of yes among answers minus among truths)."""
        rng, numbers, said, true = np.random.default_rng(5), {}, [], []
        for question in QUESTIONS:
            for habit in (False, True):
                rows = self.questions(self.n_test, rng, question=question, habit=habit)
                answers = self.answers(policy, rows)
                name = f"{question} {'with' if habit else 'against'}"
                numbers[name] = np.mean([a == row["response"] for a, row in zip(answers, rows, strict=True)])
                said, true = said + answers, true + [row["response"] for row in rows]
        basic = self.questions(self.n_test, rng, question="HAS", habit=False, answer="yes")
        clips = [row["evidence"] for row in basic]
        asked = self.questions(self.n_test, rng, question="HAS", habit=False, answer="no", clips=clips)
        right = [
            [a == r["response"] for a, r in zip(self.answers(policy, rows), rows, strict=True)]
            for rows in (basic, asked)
        ]
        sets = list(numbers.values())
        numbers |= {"quality": np.mean(sets), "with": np.mean(sets[1::2])}
        numbers |= {"basic": np.mean(right[0]), "hallucinated": np.mean(right[1])}
        numbers["paired"] = np.mean(np.all(right, axis=0))
        numbers["yes_bias"] = np.mean([s == "yes" for s in said]) - np.mean([t == "yes" for t in true])
        return {name: float(value) for name, value in numbers.items()}

    # -- starting checkpoints
    def start(self, seed: int) -> Policy:
        """Grounded, then with the habit."""
        return Policy.load(self._folder("start", seed), device=self.device)

    def untrained(self, seed: int) -> Policy:
        return self._new(seed + 1_000)

    def grounded(self, seed: int) -> float:
        """Accuracy on balanced questions after stage 1."""
        return float(runs.read_json(self._folder("start", seed) / "grounded.json"))

    def _new(self, seed: int) -> Policy:
        """Short convolutions see the neighbours of a token; the small rotary base fits so few positions."""
        from transformers import Lfm2Config, Lfm2ForCausalLM

        tokenizer: Any = word_tokenizer([*(f"o{i}" for i in range(OBJECTS)), BLANK, *QUESTIONS, "yes", "no"])
        torch.manual_seed(seed)
        layers: Any = {"conv_L_cache": 4, "layer_types": ["conv", "full_attention", "full_attention"]}
        layers |= {"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}, "tie_word_embeddings": False}
        sizes = self._sizes(tokenizer, n_layers=3, n_positions=32)
        config = Lfm2Config(**sizes, **layers, block_auto_adjust_ff_dim=False)
        return Policy(Lfm2ForCausalLM(config).to(pick_device(self.device)), tokenizer, self.name)  # type: ignore[arg-type]

    def _sizes(self, tokenizer: Any, n_layers: int, n_positions: int) -> dict[str, Any]:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": n_layers}
        width = {"hidden_size": self.width, "intermediate_size": 128, "max_position_embeddings": n_positions}
        marks = {f"{mark}_token_id": getattr(tokenizer, f"{mark}_token_id") for mark in ("bos", "eos", "pad")}
        return {"vocab_size": len(tokenizer), **width, **heads, **marks}

    def _folder(self, kind: str, seed: int):
        free = ("device", "n_triples", "n_test", "name", "blank")
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in free and f.init and f.repr}
        key = {"kind": f"{self.name}-{kind}", "code": runs.code_hash(__name__), "seed": seed, **settings}
        return runs.cached_folder(key, lambda folder: self._train(seed, folder))

    def _train(self, seed: int, folder: Any) -> None:
        policy = self._new(seed)
        stages = [np.random.default_rng([SPLITS["balanced"], seed, i]) for i in range(3)]
        balanced, check = self.questions(4_000, stages[0]), self.questions(600, stages[2])
        self._learn(policy, balanced, self.grounded_steps, 3e-3, "linear", seed * 10)
        reached = self.accuracy(policy, check)
        habitual = self.questions(4_000, stages[1], habit=True)
        self._learn(policy, habitual, self.habit_steps, 2e-3, "constant", seed * 10 + 9)
        policy.save(folder)
        runs.write_json(folder / "grounded.json", reached)

    def _learn(self, policy: Policy, rows: Sequence[Row], steps: int, rate: float, schedule: Any, seed: int) -> None:
        groups = [self.group(policy, row["evidence"], row["prompt"], row["response"]) for row in rows]
        sizes: Any = {"max_steps": steps, "batch_size": 64, "micro_batch_tokens": 4_096}
        config = TrainConfig(learning_rate=rate, schedule=schedule, **sizes)
        train(policy, groups, supervised_step, config, seed=seed)


# ------------------------------------------------------------------------------------------------------ as pictures
@lru_cache(maxsize=64)
def picture(frame: str, size: int = 16) -> np.ndarray:
    """A frame as pixels [3, size, size] between 0 and 1: 7 colours, a square or a disc; the blank one is black."""
    found = np.zeros((3, size, size), np.float32)
    if frame == BLANK:
        return found
    number = int(frame[1:])
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    inside = np.maximum(abs(x), abs(y)) < size / 3 if number < COMMON else x**2 + y**2 < (size / 2.2) ** 2
    bits = number % COMMON + 1
    for channel in range(3):
        found[channel][inside] = 1.0 if bits >> channel & 1 else 0.15
    return found


@dataclass(frozen=True)
class Pictures(Clips):
    """The same clips for a vision-language model of transformers: frames are pictures, seen by a small frozen CLIP
    tower.

    What the tower and the projector make of a frame is computed once and kept, so K altered clips cost no vision at
    all: they are other orders of known frames.
    """

    name: str = "clips as pictures"
    _seen: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    def group(self, policy: Policy, evidence: Sequence[str], prompt: str, response: str) -> Group:
        features = [self.look(policy, frame) for frame in evidence]
        image = policy.tokenizer.convert_tokens_to_ids(IMAGE)
        start = [policy.tokenizer.bos_token_id, *[image] * sum(map(len, features))]
        return Group(
            [*start, *policy.encode_part(prompt)], [policy.encode_part(response)], features=torch.cat(features)
        )

    def embed(self, policy: Policy, evidence: Sequence[str]) -> np.ndarray:
        return np.stack([self.look(policy, frame).mean(0).cpu().numpy() for frame in evidence])

    def look(self, policy: Policy, frame: str) -> torch.Tensor:
        """Features [token, d_model] of one frame; their tower is frozen, so they are kept by its weights."""
        tower = next(p for name, p in policy.model.named_parameters() if "vision_tower" in name)
        key = (hash(tower.detach().cpu().numpy().tobytes()), frame)
        if key not in self._seen:
            with torch.no_grad():
                self._seen[key] = policy.features(torch.from_numpy(picture(frame))[None])
        return self._seen[key]

    def start(self, seed: int) -> Policy:
        return self._new(seed)

    def _new(self, seed: int) -> Policy:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

        tokenizer: Any = word_tokenizer([*(f"o{i}" for i in range(OBJECTS)), BLANK, *QUESTIONS, "yes", "no", IMAGE])
        torch.manual_seed(seed)
        text = LlamaConfig(**self._sizes(tokenizer, n_layers=2, n_positions=128))
        tower: Any = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision = CLIPVisionConfig(**tower, image_size=16, patch_size=8, projection_dim=32)
        image: Any = {"image_token_id": tokenizer.convert_tokens_to_ids(IMAGE), "image_seq_length": 4}
        make: Any = LlavaConfig
        config = make(vision_config=vision, text_config=text, vision_feature_layer=-1, **image)
        model = LlavaForConditionalGeneration(config)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("vision_tower" not in name and "multi_modal_projector" not in name)
        return Policy(model.to(pick_device(self.device)), tokenizer, self.name)  # type: ignore[arg-type]
