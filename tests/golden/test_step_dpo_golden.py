"""Step-DPO: the loss of its trainer, values and gradients; and the tokens of a step pair, without loss on the prompt
and without an end token on a step, against the official tokenize_row."""

from types import SimpleNamespace

import torch

from workbench import objectives
from workbench.models import Policy


def test_loss_of_the_trainer(golden):
    for number, case in enumerate(golden("step_dpo.json")["cases"]):
        values = {name: torch.tensor(v, dtype=torch.float64, requires_grad=True) for name, v in case["inputs"].items()}
        losses, logged = objectives.dpo(**values, **case["hyperparameters"])
        losses.sum().backward()
        for name, expected in case["outputs"].items():
            wanted = torch.tensor(expected, dtype=torch.float64)
            if name == "losses" and case["hyperparameters"]["loss_type"] == "kto_pair":
                # their two terms of a pair stand behind each other, ours are added
                wanted = wanted.reshape(2, -1).sum(0)
            grad = values[name.removeprefix("grad_")].grad if name.startswith("grad_") else None
            got = losses.detach() if name == "losses" else logged[name] if grad is None else grad
            torch.testing.assert_close(
                got, wanted, rtol=1e-6, atol=1e-6, msg=lambda text, n=number, m=name: f"case {n}, {m}: {text}"
            )


class Codes:
    """A character tokenizer: the id is the code point, as in the golden cases."""

    eos_token_id, chat_template = 0, None

    def __init__(self, bos):
        self.bos_token_id = bos

    def __call__(self, text, **options):
        return SimpleNamespace(input_ids=[ord(c) for c in text])


def policy_with(bos):
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=64))
    return Policy(SimpleNamespace(config=config), Codes(bos))


def test_step_pairs_as_the_official_code_tokenises_them(golden):
    for case in golden("step_dpo_tokenize.json")["cases"]:
        given, limits, expected = case["inputs"], case["hyperparameters"], case["outputs"]
        policy = policy_with(limits["bos_token_id"])
        text = {name: "".join(map(chr, ids)) for name, ids in given.items()}
        sides = [policy.encode_part(text["chosen_ids"]), policy.encode_part(text["rejected_ids"])]
        group = policy.group(
            policy.encode_prompt(text["prompt_ids"]),
            sides,
            max_length=limits["max_length"],
            max_prompt_length=limits["max_prompt_length"],
        )
        assert group.prompt_ids == expected["prompt_input_ids"]
        # They keep max_length - max_prompt_length tokens of a step that is too long even where the prompt is shorter
        # than its limit; here such a step may fill the room that is there.
        room = limits["max_length"] - limits["max_prompt_length"]
        is_long = len(group.prompt_ids) + max(map(len, sides)) > limits["max_length"]
        for side, ids in zip(("chosen", "rejected"), group.responses_ids, strict=True):
            kept = ids[:room] if is_long else ids
            assert group.prompt_ids + kept == expected[f"{side}_input_ids"]
            assert [-100] * len(group.prompt_ids) + kept == expected[f"{side}_labels"]
            assert 0 not in ids  # no end token: the answer goes on
