import pytest
import torch


def exact(model):
    """The model with norms of torch: those of transformers round to float32 on the way, whatever the weights are."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                norm = torch.nn.RMSNorm(child.weight.shape[0], eps=1e-6, dtype=child.weight.dtype)
                norm.load_state_dict(child.state_dict())
                setattr(module, name, norm)
    return model


@pytest.fixture(scope="session")
def tiny_llama():
    """A random Llama of transformers in float64, so that routes can be compared to rounding."""
    from workbench.models import new_llama
    from workbench.worlds.language import word_tokenizer

    model = new_llama(word_tokenizer([f"s{i}" for i in range(21)]), width=16, layers=2, heads=2, max_length=64, seed=0)
    return exact(model.double().eval())


@pytest.fixture(scope="session")
def tiny_gpt2():
    """Another architecture: learned positions, tied head, LayerNorm."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=23,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=1,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )
    return GPT2LMHeadModel(config).double().eval()


@pytest.fixture(params=["plain loop", "slots"])
def both_loops(request, monkeypatch):
    """Texts of tests are short, for which `sample` would take the plain loop alone."""
    monkeypatch.setattr("workbench.kernels.slots.SHORT", 10**6 if request.param == "plain loop" else 0)
