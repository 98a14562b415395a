"""The training step of a pack without a single array: shapes and layouts, lowered for any mesh."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh

from jaxbooth.diffusion.loss import Objective
from jaxbooth.families import ModelFamily
from jaxbooth.methods.base import Method
from jaxbooth.nn.key_locked import TextMetric
from jaxbooth.pipeline import StableDiffusion, build, latent_shape
from jaxbooth.sharding import batch_sharding, check_rows, subject_sharding
from jaxbooth.training.pack import Pack
from jaxbooth.training.state import abstract_state
from jaxbooth.training.step import make_train_step
from jaxbooth.types import Batch, Remat, SubjectText, Text


@dataclass(frozen=True)
class StepRecipe:
    """Everything that decides the program of a training step, but the number of subjects and the mesh.

    Attributes:
        family: Sizes of the base.
        method: What is put into it.
        optimizer: As `OptimizerConfig.build` makes it.
        objective: The loss.
        rows: Of each subject and step, prior rows included.
        resolution: Side of the pictures in pixels.
        dtype: Compute dtype; weights are kept as `trained.load_base` keeps them.
        remat: What the backward pass computes again (types.py).
        accumulation: Parts that a step's rows are taken in.
        reduce_dtype: In which devices sum gradients.
        ema_decay: Of averaged weights, if they are kept.
        masked: Whether the loss is weighted by masks.
    """

    family: ModelFamily
    method: Method
    optimizer: optax.GradientTransformation
    objective: Objective
    rows: int
    resolution: int
    dtype: str = "float32"
    remat: Remat = "none"
    accumulation: int = 1
    reduce_dtype: str = "float32"
    ema_decay: float | None = None
    masked: bool = False


def abstract_step(recipe: StepRecipe, subjects: int, mesh: Mesh | AbstractMesh) -> tuple[Callable, tuple]:
    """The jitted step of a pack, and shapes and layout of its arguments: `step.trace(*arguments)`.

    Args:
        recipe: The step.
        subjects: Size of the pack.
        mesh: Of devices that are there, that are described, or that only have a name.

    Raises:
        MeshError: Subjects or rows do not divide over the mesh.
        MethodError: Nothing is trainable.
    """
    check_rows(mesh, subjects, recipe.rows, recipe.accumulation)
    ema, texts = recipe.ema_decay is not None, _abstract_texts(recipe, subjects)
    split, state = abstract_state(recipe.method, abstract_model(recipe), subjects, recipe.optimizer, mesh, ema, texts)
    step = make_train_step(
        recipe.method, split, recipe.optimizer, recipe.objective, mesh, state,
        accumulation=recipe.accumulation, ema_decay=recipe.ema_decay,
        reduce_dtype=recipe.reduce_dtype,
    )  # fmt: skip
    return step, (state, split.base, abstract_batch(recipe, subjects, mesh), abstract_pack(subjects, mesh))


def trace_step(recipe: StepRecipe, subjects: int, mesh: Mesh) -> jax.stages.Traced:
    """The program of one step for a pack, as JAX sees it; takes no memory to speak of.

    Raises:
        MeshError: Subjects or rows do not divide over the mesh.
        MethodError: Nothing is trainable.
    """
    step, arguments = abstract_step(recipe, subjects, mesh)
    return step.trace(*arguments)


def lower_step(recipe: StepRecipe, subjects: int, mesh: Mesh) -> jax.stages.Lowered:
    """The same before the compiler has seen it; raises as `trace_step` does."""
    return trace_step(recipe, subjects, mesh).lower()


def abstract_batch(recipe: StepRecipe, subjects: int, mesh: Mesh) -> Batch:
    """Shapes and layout of what `BatchStream.device_batch` gives."""
    family = recipe.family
    height, width, channels = latent_shape(family, recipe.resolution, recipe.resolution)

    def leaf(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((subjects, recipe.rows, *shape), dtype, sharding=batch_sharding(mesh))

    encoders, length = family.text_encoders, family.text_encoders[0].max_position_embeddings
    if recipe.method.trains_text_encoder:
        text = Text(input_ids=leaf(len(encoders), length, dtype=jnp.int32))
    else:
        pooled = leaf(encoders[-1].projection_dim) if family.size_conditioning else None
        text = Text(encoder_hidden_states=leaf(length, family.unet.cross_attention_dim), pooled=pooled)
    return Batch(
        moments=leaf(height, width, 2 * channels),
        text=text,
        time_ids=leaf(6) if family.size_conditioning else None,
        weights=leaf(),
        is_prior=leaf(dtype=jnp.bool_),
        rows=leaf(dtype=jnp.int32),
        mask=leaf(height, width) if recipe.masked else None,
    )


def abstract_pack(subjects: int, mesh: Mesh) -> Pack:
    """Shapes and layout of what `pack_arrays` gives."""

    def leaf(*shape: int, dtype=jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((subjects, *shape), dtype, sharding=subject_sharding(mesh))

    return Pack(leaf(2, dtype=jnp.uint32), leaf(), leaf(), leaf(dtype=jnp.float32))


def abstract_model(recipe: StepRecipe) -> StableDiffusion:
    """The base without an array, its weights of the dtypes that `trained.load_base` gives them."""
    kinds = {"dtype": jnp.dtype(recipe.dtype), "param_dtype": jnp.float32, "remat": recipe.remat}
    kinds["rounded"] = recipe.method.multiplies_base_only
    sd = nnx.eval_shape(lambda: build(recipe.family, **kinds, rngs=nnx.Rngs(0)))
    if getattr(recipe.method, "type", None) == "perfusion":
        width = recipe.family.unet.cross_attention_dim
        sd.concepts = nnx.data(nnx.eval_shape(lambda: TextMetric(jnp.zeros((width, width)))))
    return sd


def _abstract_texts(recipe: StepRecipe, subjects: int) -> SubjectText | None:
    """One concept of one word and one caption: their number does not change the program of the step."""
    if not recipe.method.vectors_per_token:
        return None
    encoders, length = len(recipe.family.text_encoders), recipe.family.text_encoders[0].max_position_embeddings
    shapes = SubjectText((1, encoders, 1), (1, 1, encoders, length), (1, 1))
    return SubjectText(*(jax.ShapeDtypeStruct((subjects, *shape), jnp.int32) for shape in shapes))
