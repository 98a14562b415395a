"""JAX as the tests want it: on the CPU, 8 devices, exact matrix products; caches of their own."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Moments and prior pictures of one test session are shared, the user's cache is left alone."""
    monkeypatch.setenv("JAXBOOTH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
