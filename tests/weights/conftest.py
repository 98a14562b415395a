import shutil

import pytest


@pytest.fixture
def copy(twin_folder, tmp_path):
    """A twin that a test may break."""
    return shutil.copytree(twin_folder("sd1"), tmp_path / "base")
