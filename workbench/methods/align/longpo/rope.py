"""Rotary positions with another base, for texts longer than a model was trained on."""

from __future__ import annotations

from workbench.models import Policy


def set_rope_theta(policy: Policy, theta: float) -> None:
    """Gives the policy another base of its rotary positions; the reference is another object and keeps its own.

    Raises:
        ValueError: the model has no rotary positions with a base.
    """
    config = policy.model.config.get_text_config()
    places = [(m, n) for m in policy.model.modules() for n, c in m.named_children() if n == "rotary_emb"]
    if not places or not getattr(config, "rope_parameters", None):
        raise ValueError(f"{policy.name} has no rotary positions whose base could be {theta:g}; set rope_theta=0")
    config.rope_parameters["rope_theta"] = theta
    for module, name in places:
        setattr(module, name, type(getattr(module, name))(config=config).to(policy.device))
