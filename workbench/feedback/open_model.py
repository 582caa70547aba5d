"""A model to ask, from the words that name it: a folder, a hub id, or the address of a server."""

from __future__ import annotations

from workbench.feedback.chat import ChatModel


def open_model(source: str, *, device: str = "auto", seed: int = 0) -> ChatModel:
    """The model that a text names: a server's address with its model (`http://localhost:8000/v1#name`), else a folder
    or hub id.

    Raises:
        ValueError: an address without a model (see `endpoint.Address`).
        FileNotFoundError: no such model.
    """
    if source.startswith(("http://", "https://")):
        from workbench.feedback.endpoint import EndpointModel

        return EndpointModel(source, seed=seed)
    from workbench.feedback.local import LocalModel  # torch loads here, not before

    return LocalModel(source, device=device, seed=seed)
