"""Videos: clips of real pictures as evidence, for a vision-language model in the hub's format.

Videos are read as pictures: cut them into frames first.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench import data
from workbench.data import Row
from workbench.kernels import Group
from workbench.methods.align.pami_vdpo.alterations import bag_of_words, check_triples
from workbench.models import Policy
from workbench.tasks.real import RealRows
from workbench.training.reference import reference_logps

log = logging.getLogger(__name__)

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass
class PassageTask(RealRows):
    """Rows with `evidence` (a list of sentences), `prompt` and `response`; or demonstrations, whose prompt is cut into
    sentences: the last one asks, the others are the evidence. Prompts of one sentence are left out.
    """

    max_length: int = 2_048
    name: str = "passages"
    blank: str = ""

    def triples(self, split: str, seed: int) -> list[Row]:
        return self.part(split, seed)

    def read(self) -> list[Row]:
        rows = data.load(self.dataset)
        found = rows if "evidence" in rows[0] else [_cut(row) for row in data.as_demonstrations(rows)]
        return check_triples([row for row in found if row.get("evidence") != []])

    def group(self, policy: Policy, evidence: Sequence[str], prompt: str, response: str) -> Group:
        text = " ".join(part for part in evidence if part)
        return policy.group(f"{text}\n{prompt}", [response], max_length=self.max_length)

    def embed(self, policy: Policy, evidence: Sequence[str]) -> np.ndarray:
        return bag_of_words(evidence, self.blank)

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]:
        """Held-out responses: negative log-likelihood a token (`quality` is its negative), and how many nats a response
        the evidence adds, log p(y | evidence, prompt) - log p(y | prompt)."""
        rows = self.triples("test", seed)
        seen = [self.group(policy, row["evidence"], row["prompt"], row["response"]) for row in rows]
        blank = [self.group(policy, [self.blank], row["prompt"], row["response"]) for row in rows]
        with_it, without = reference_logps(policy, seen)[:, 0], reference_logps(policy, blank)[:, 0]
        nll = -with_it.sum() / sum(len(group.responses_ids[0]) for group in seen)
        return {"quality": -float(nll), "token_nll": float(nll), "evidence_nats": float(np.mean(with_it - without))}


def _cut(row: Row) -> Row:
    sentences = _SENTENCE.split(str(row["prompt"]).strip())
    return {"evidence": sentences[:-1], "prompt": sentences[-1], "response": row["completion"]}


@dataclass
class VideoTask(PassageTask):
    """Rows with `video`, `prompt` and `response`; evidence is the files of `n_frames` pictures, evenly spaced.

    The vision tower and the projector are frozen, so what they make of a picture is computed once and kept, and altered
    clips
    cost no vision: they are other orders of known pictures.
    """

    n_frames: int = 8
    name: str = "videos"
    blank: str = "black"
    _seen: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    _processor: list[Any] = field(default_factory=list, repr=False)

    def start(self, seed: int) -> Policy:
        policy = super().start(seed)
        for name, parameter in policy.model.named_parameters():
            if "vision_tower" in name or "multi_modal_projector" in name:
                parameter.requires_grad_(False)
        return policy

    def read(self) -> list[Row]:
        folder = Path(self.dataset).expanduser().parent
        found, lost = with_frames(data.load(self.dataset), self.n_frames, folder)
        if not found:
            raise ValueError(
                f"{self.dataset}: no video has {self.n_frames} readable pictures; {len(lost)} are left out"
            )
        return check_triples(found)

    def group(self, policy: Policy, evidence: Sequence[str], prompt: str, response: str) -> Group:
        """One image token a frame, then as many as the frame has features, as the library's processors do."""
        image: int = policy.model.config.image_token_id
        mark = policy.tokenizer.convert_ids_to_tokens(image)
        if mark in prompt:
            raise ValueError(f"the prompt {prompt[:60]!r} contains {mark}, which stands for a picture; remove it")
        frames = [self.look(policy, file) for file in evidence]
        asked, places = policy.encode_prompt(" ".join([mark] * len(frames)) + f"\n{prompt}"), iter(frames)
        ids = [token for one in asked for token in [one] * (len(next(places)) if one == image else 1)]
        answer = policy.encode_response(response)
        if len(ids) + len(answer) > min(self.max_length, policy.max_length):
            raise ValueError(
                f"{len(frames)} frames, prompt and response of {prompt[:60]!r} have {len(ids) + len(answer)} tokens,"
                f" more than {min(self.max_length, policy.max_length)}; take fewer frames (n_frames) or raise"
                " max_length"
            )
        return Group(ids, [answer], features=torch.cat(frames))

    def embed(self, policy: Policy, evidence: Sequence[str]) -> np.ndarray:
        return np.stack([self.look(policy, file).float().mean(0).cpu().numpy() for file in evidence])

    @torch.no_grad()
    def look(self, policy: Policy, file: str) -> torch.Tensor:
        """Features [token, d_model] of one picture."""
        if file not in self._seen:
            from PIL import Image
            from transformers import AutoImageProcessor

            if not self._processor:
                self._processor.append(AutoImageProcessor.from_pretrained(self.model, trust_remote_code=False))
            picture = Image.new("RGB", (64, 64)) if file == self.blank else Image.open(file).convert("RGB")
            pixels = self._processor[0](images=[picture], return_tensors="pt")["pixel_values"]
            self._seen[file] = policy.features(pixels)
        return self._seen[file]


def with_frames(rows: Sequence[Row], n_frames: int, folder: Path) -> tuple[list[Row], list[str]]:
    """Rows with `evidence`, the files of evenly spaced pictures; relative names are looked up in `folder`.

    Pictures with the same bytes get the same name, so that an alteration which changes nothing is seen. A video with
    fewer pictures than asked for, or with one that Pillow cannot read, is left out and listed: frames are never
    repeated.
    """
    kept, lost, names = [], [], {}
    for index, row in enumerate(rows):
        if not row.get("video"):
            raise ValueError(
                f"row {index}, column 'video': a folder or a list of picture files is needed; got {row.get('video')!r}"
            )
        try:
            files = _pictures(row["video"], folder)
            if len(files) < n_frames:
                raise OSError(f"{len(files)} pictures")
            taken = [files[i] for i in np.linspace(0, len(files) - 1, n_frames).round().astype(int)]
            found = [names.setdefault(_digest(file), str(file)) for file in taken]
        except OSError as error:
            log.warning("row %d, video %s: %s", index, str(row["video"])[:100], error)
            lost.append(str(row["video"]))
        else:
            kept.append({**row, "evidence": found})
    if lost:
        told = "%d of %d videos have no %d readable pictures and are left out: %s"
        log.warning(told, len(lost), len(rows), n_frames, lost[:5])
    return kept, lost


def _pictures(video: str | Sequence[str], folder: Path) -> list[Path]:
    if not isinstance(video, str):
        return [folder / name for name in video]
    return sorted(path for path in (folder / video).iterdir() if path.suffix.lower() in PICTURES)


def _digest(file: Path) -> bytes:
    """Of the file's bytes, once Pillow has read the whole picture."""
    from PIL import Image

    with Image.open(file) as picture:
        picture.load()
    return blake2b(file.read_bytes(), digest_size=16).digest()


_SENTENCE = re.compile(r"(?<=[.!?])\s+")
