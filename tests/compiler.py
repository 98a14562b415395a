"""How tests compile: as fast as can be. Compiling is nearly all of their time; the arithmetic stays the same."""

from functools import cache

import jax

WANTED = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}


@cache
def options() -> dict:
    """For `jax.jit(..., compiler_options=...)`: those of the wishes that this version of XLA knows."""
    return {name: value for name, value in WANTED.items() if _is_known({name: value})}


def flags() -> str:
    """The same as a part of XLA_FLAGS."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in options().items())


def _is_known(option: dict) -> bool:
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=option)
    except jax.errors.JaxRuntimeError:
        return False
    return True
