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


@pytest.fixture(scope="session")
def twin_folder(tmp_path_factory):
    """`twin_folder("sd1")` is the folder of a tiny random pipeline, made once for all tests: read it only."""
    folders = {}

    def folder(kind: str):
        if kind not in folders:
            from twins import make_twin

            folders[kind] = make_twin(tmp_path_factory.mktemp("twins") / kind, kind)
        return folders[kind]

    return folder


@pytest.fixture(scope="session")
def twin(twin_folder):
    """`twin("sd1")` is that pipeline, loaded once for all tests: do not change it."""
    pipelines = {}

    def load(kind: str):
        from jaxbooth import load_pipeline

        if kind not in pipelines:
            pipelines[kind] = load_pipeline(twin_folder(kind))
        return pipelines[kind]

    return load
