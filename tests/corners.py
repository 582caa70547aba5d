"""Both themes on both screens: two corners in `make test`, all four in `make test-all`."""

import pytest

CORNERS = [
    pytest.param(False, 1280, id="light-1280"),
    pytest.param(True, 390, id="dark-390"),
    pytest.param(False, 390, id="light-390", marks=pytest.mark.exhaustive),
    pytest.param(True, 1280, id="dark-1280", marks=pytest.mark.exhaustive),
]
