"""jaxbooth: Stable Diffusion learns a subject from 3-5 photos, in JAX."""

__version__ = "0.1.0"

_PUBLIC = {"load_pipeline": "jaxbooth.weights.load", "save_pipeline": "jaxbooth.weights.save"}


def __getattr__(name: str):
    # Loaded on first use: `jaxbooth --help` must not wait for JAX.
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module jaxbooth has no attribute {name}")


__all__ = ["__version__", *_PUBLIC]
