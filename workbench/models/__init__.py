"""Models: a causal language model with its tokenizer, and the one way in which text becomes tokens and back."""

from workbench.models.policy import Policy, Prompt, pick_device
from workbench.models.pretrained import add_lora
from workbench.models.small import BOS, EOS, bpe_tokenizer, new_llama

__all__ = ["BOS", "EOS", "Policy", "Prompt", "add_lora", "bpe_tokenizer", "new_llama", "pick_device"]
