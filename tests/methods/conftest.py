"""A runs folder for all tests of a file of one system."""

import pytest


@pytest.fixture(scope="module")
def root(request, starts):
    """A folder whose `runs/` shares the starting checkpoints of all tests."""
    folder = starts(request.module.__name__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(folder))
        yield folder.parent
