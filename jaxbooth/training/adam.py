"""Adam's moments for subjects that may stand still."""

import jax
import jax.numpy as jnp
import optax


class KeptAdamState(optax.ScaleByAdamState):
    """Moments that `scale_by_adam` here has already kept where the subject stands still: nobody selects them again."""


def scale_by_adam(
    b1: float, b2: float, eps: float, mu_dtype: jnp.dtype = jnp.float32
) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam` (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1), told whether the subject moves.

    The update is taken of the moments that are kept. Were they selected afterwards, the update would be fused with the
    moments before the selection and read the old ones again: XLA on CPU then copies all of them every step.

    Args:
        b1: Decay of the first moment.
        b2: Decay of the second moment.
        eps: Added to the root of the second moment.
        mu_dtype: In which the first moment is kept.
    """
    plain = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)

    def init(params) -> KeptAdamState:
        return KeptAdamState(*plain.init(params))

    def update(grads, state: KeptAdamState, params=None, *, moves=True, **_):
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2)
        new, old = (state.count + 1, mu, nu), (state.count, state.mu, state.nu)
        count, mu, nu = jax.tree.map(lambda new, old: jnp.where(moves, new, old), new, old)
        mu_hat, nu_hat = optax.tree.bias_correction(mu, b1, count), optax.tree.bias_correction(nu, b2, count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu_hat, nu_hat)
        return updates, KeptAdamState(count, optax.tree.cast(mu, mu_dtype), nu)

    return optax.GradientTransformationExtraArgs(init, update)
