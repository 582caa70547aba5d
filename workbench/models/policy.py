"""Policy: a causal language model, its tokenizer, and the one way in which text becomes tokens and back.

Text becomes tokens in one way everywhere: the prompt goes through the tokenizer's chat template (plain text where it
has none), the response is tokenised apart and joined as ids, so no token merges across the border; a response that
ended is closed as the template closes the assistant's turn, with one end token, which is scored. The end of a turn need
not be the tokenizer's EOS token: in many chat models the first is <|im_end|> and the second <|endoftext|>.
"""

from __future__ import annotations

import copy
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from workbench.kernels import Group
from workbench.kernels.heads import merged
from workbench.kernels.sampling import end_tokens
from workbench.models.pretrained import add_lora, load_pretrained, save_pretrained
from workbench.models.turns import Turn, apart, behind, read_turn, render

log = logging.getLogger(__name__)

Prompt = str | list[dict[str, str]]


def pick_device(device: str) -> torch.device:
    """ "auto" takes the GPU where there is one.

    Raises:
        ValueError: a GPU was asked for and there is none, or the name is unknown.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda; got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError('device="cuda" was asked for but torch sees no GPU; use device="auto" or "cpu"')
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if "LOCAL_RANK" in os.environ:  # one of several processes of torchrun: each has a GPU of its own
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda")


@dataclass
class Policy:
    """A model and its tokenizer.

    Attributes:
        model: a causal language model of transformers, plain or with a LoRA adapter; it may see pictures (Llava).
        tokenizer: with an end token; with a chat template if prompts are chats.
        name: where it came from, for messages and manifests.
        precision: "bf16" computes in bfloat16 under autocast, with the weights as they are; "no" as they are. Scoring,
            sampling and training share it, so that policy and reference always differ by nothing but their weights.
        counts: how often text had to be cut ("prompts_cut", "responses_cut").
    """

    model: Any
    tokenizer: Any
    name: str = "policy"
    precision: str = "no"
    counts: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self._turns: dict[str | None, Turn] = {}
        if self.tokenizer.eos_token_id is None:
            why = f"the tokenizer of {self.name} has no end token, so no response would ever end"
            raise ValueError(f"{why}; set tokenizer.eos_token (and save it) before using the model here")

    # -- in and out
    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        precision: str = "no",
        lora: dict | None = None,
    ) -> Policy:
        """Loads a policy from a folder in the hub's format or from a hub id.

        Args:
            source: folder or hub id. Where it holds an adapter (LoRA, DoRA), the base model that it names is loaded and
                the adapter put on it.
            dtype: of the weights; "auto" is bfloat16 on a GPU that has it and float32 on a CPU, else a torch dtype's
                name. Weights that will be trained want float32: a small step is lost in the rounding of bfloat16.
            precision: "no" or "bf16", see the attribute.
            lora: options of a new adapter, as `peft.LoraConfig` takes them; one that is there already is merged first.

        Raises:
            FileNotFoundError: no such folder, and no such model on the hub (or no network).
            ValueError: no GPU where one was asked for; no end token; weights are missing or left over, as of a reward
                model.
        """

        where = pick_device(device)
        if dtype == "auto":
            dtype = "bfloat16" if where.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
        source, model, tokenizer = load_pretrained(source, "policy", dtype=getattr(torch, dtype))
        if lora is not None:
            model = add_lora(merged(model) if hasattr(model, "peft_config") else model, **lora)
        model.to(where)  # type: ignore[arg-type]
        return cls(model, tokenizer, name=source, precision=precision)

    def save(self, folder: str | Path) -> None:
        """Writes model (or adapter, see `save_pretrained`) and tokenizer in the hub's format; safetensors only."""
        save_pretrained(self.model, self.tokenizer, folder)

    def copy(self) -> Policy:
        """An independent copy with the same weights."""
        return Policy(copy.deepcopy(self.model), self.tokenizer, self.name, self.precision)

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def max_length(self) -> int:
        """Tokens that prompt and response may have together."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 0) or 2048)

    @contextmanager
    def without_adapter(self) -> Iterator[Policy]:
        """This policy with its LoRA adapter switched off: the base model, at no cost in memory.

        Raises:
            ValueError: there is no adapter to switch off.
        """
        if not hasattr(self.model, "disable_adapter"):
            raise ValueError(f"{self.name} has no LoRA adapter to switch off; pass lora={{...}} to Policy.load")
        with self.model.disable_adapter():
            yield self

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[picture, channel, height, width], scaled as the image processor does it -> [picture * token, d_model].

        Raises:
            ValueError: the model sees no pictures.
        """
        base = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        if not hasattr(base, "get_image_features"):
            raise ValueError(f"{self.name} ({type(base).__name__}) sees no pictures; load a Llava-type model")
        with self.autocast():
            found = base.get_image_features(pixel_values=pixel_values.to(self.device, base.dtype)).pooler_output
        return torch.cat(list(found))

    # -- text to tokens
    def encode_prompt(self, prompt: Prompt | Sequence[int], *, room: int = 0) -> list[int]:
        """Token ids of a prompt, up to and including what announces the assistant's turn.

        A text is one user turn if the tokenizer has a chat template, else it is taken as it is, behind the start token.
        A prompt that leaves no `room` in tokens behind it in the context keeps its end and is counted.

        Raises:
            ValueError: an empty prompt, a chat without a chat template, or more room than the context has.
        """
        if not prompt:
            raise ValueError("an empty prompt: give at least one character or one chat turn")
        ids = self._prompt_ids(prompt)
        if room >= self.max_length:
            context = f"a context of {self.max_length}"
            raise ValueError(f"{room} new tokens leave no room for a prompt in {context}; ask for fewer")
        if room and len(ids) + room > self.max_length:
            self.counts["prompts_cut"] += 1
            ids = ids[room - self.max_length :]
        return ids

    def _prompt_ids(self, prompt: Prompt | Sequence[int]) -> list[int]:
        if not isinstance(prompt, str) and isinstance(prompt[0], int):
            return [int(token) for token in prompt]  # type: ignore[arg-type]
        has_template = getattr(self.tokenizer, "chat_template", None)
        if not isinstance(prompt, str) and not has_template:
            why = f"the tokenizer of {self.name} has no chat template, so a chat cannot become text"
            raise ValueError(f"{why}; give prompts as plain text or set tokenizer.chat_template")
        if has_template:
            chat: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            return render(self.tokenizer, chat, tokenize=True)
        start = [self.tokenizer.bos_token_id] if self.tokenizer.bos_token_id is not None else []
        return start + self.tokenizer(prompt, add_special_tokens=False).input_ids

    def encode_response(self, text: str) -> list[int]:
        """Token ids of a response as the chat template writes it behind what announces the assistant's turn, up to and
        including the token that ends the turn (the EOS token where there is no template, or it writes no end).

        Text can never spell a special token.
        """
        turn = self.turn
        text = text.strip() if turn.is_trimmed else text
        if turn.lead_ids:  # an empty <think> block, unless the text brings its own
            own = text.lstrip().startswith(turn.lead.split()[0])
            return [*(() if own else turn.lead_ids), *self.encode_part(text), *turn.end_ids]
        return [*self.encode_part(turn.lead + text), *turn.end_ids]

    def encode_part(self, text: str) -> list[int]:
        """Token ids of a part of a response that goes on behind it: no end token."""
        ids = behind(self.tokenizer, text) if self.turn.joins_words else apart(self.tokenizer, text)
        return [token for token in ids if token != self.tokenizer.eos_token_id]

    @property
    def turn(self) -> Turn:
        """How a response stands in the text; read once for every chat template."""
        template = getattr(self.tokenizer, "chat_template", None)
        if template not in self._turns:
            self._turns[template] = read_turn(self.tokenizer)
        return self._turns[template]

    @property
    def end_id(self) -> int:
        """The token that ends the assistant's turn, and so a response that is complete."""
        return self.turn.end_ids[-1]

    @property
    def end_ids(self) -> frozenset[int]:
        """Every token that ends a response: of the turn, of the tokenizer, of the model's generation settings."""
        return end_tokens(self.model, self.tokenizer) | {self.end_id}

    def group(
        self,
        prompt: Prompt | Sequence[int],
        responses: Sequence[str | list[int]],
        *,
        max_length: int = 0,
        max_prompt_length: int = 0,
    ) -> Group:
        """Prompt and responses as token ids, cut to the context where they must be.

        The rule of the SPIN and DPO code: if prompt and longest response do not fit, the last `max_prompt_length`
        tokens of the prompt stay; if that is not enough, every response keeps its first tokens. Cuts are counted.

        Args:
            responses: texts, or token ids that are taken as they are (samples keep the tokens that were drawn).
            max_length: of prompt and response together; 0, or more than the model's context, takes the context.
            max_prompt_length: 0 takes half of `max_length`.

        Raises:
            ValueError: no token would be left of a response.
        """
        max_length = min(max_length or self.max_length, self.max_length)
        max_prompt_length = max_prompt_length or max_length // 2
        prompt_ids = self.encode_prompt(prompt)
        ids = [self.encode_response(r) if isinstance(r, str) else list(r) for r in responses]
        longest = max(map(len, ids), default=0)
        if len(prompt_ids) + longest > max_length and len(prompt_ids) > max_prompt_length:
            self.counts["prompts_cut"] += 1
            prompt_ids = prompt_ids[-max_prompt_length:]
        room = max_length - len(prompt_ids)
        if room < 1:
            behind = f"behind {len(prompt_ids)} prompt tokens"
            raise ValueError(f"max_length={max_length} leaves no room for a response {behind}")
        self.counts["responses_cut"] += sum(len(r) > room for r in ids)
        return Group(prompt_ids, [r[:room] for r in ids])

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)
