import pytest
import torch


@pytest.fixture(scope="session")
def tiny_llama():
    """A random Llama of transformers in float64, so that routes can be compared to rounding."""
    from workbench.models import new_llama
    from workbench.worlds.language import word_tokenizer

    return (
        new_llama(word_tokenizer([f"s{i}" for i in range(21)]), width=16, layers=2, heads=2, max_length=64, seed=0)
        .double()
        .eval()
    )


@pytest.fixture(scope="session")
def tiny_gpt2():
    """Another architecture: learned positions, tied head, LayerNorm."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=23, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1,
                        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)  # fmt: skip
    return GPT2LMHeadModel(config).double().eval()
