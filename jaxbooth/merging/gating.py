"""Several Perfusion concepts in one model, learned apart: their directions made orthogonal under the text metric.

    h(e) = W (e - I G^-1 I^T C^-1 e) + sum_j g_j(e) o*_j        I = [i*_1 .. i*_J], G = I^T C^-1 I

The exact Gram form, after Tewel et al. 2023, arXiv 2305.01644: each concept keeps its word, its gate and its outputs,
and no weight is changed. Nothing is computed here but checks; `nn.key_locked` does the rest for each prompt.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxbooth.errors import MethodError, list_problems
from jaxbooth.export.perfusion import PerfusionConcept
from jaxbooth.families import NewToken
from jaxbooth.methods.concepts import Concepts, KeyLock
from jaxbooth.methods.perfusion import LAYERS, Part, edit_layers
from jaxbooth.methods.tokens import TOKEN_EMBEDDING
from jaxbooth.nn.key_locked import TextMetric
from jaxbooth.nn.surgery import find_modules, replace_modules
from jaxbooth.nn.token_embedding import ExtendedEmbed
from jaxbooth.pipeline import StableDiffusion, tokenizers

ALIKE = 0.9999  # cosine under the metric from which two directions cannot be told apart in float32


def gate_together(
    sd: StableDiffusion, metric: TextMetric, concepts: Sequence[PerfusionConcept], base: str, *,
    key_lock: KeyLock | None = None, bypass: bool | None = None,
) -> StableDiffusion:  # fmt: skip
    """The base with one or several concepts in it, to draw with; `sd` stays as it is and its arrays are shared.

    Args:
        sd: The plain base.
        metric: The base's C^-1.
        concepts: In any order: the result is the same to the bit.
        base: The base's digest, `weights.digest.base_digest`.
        key_lock: What keys are made of; default: as the concepts say.
        bypass: Whether a prompt is edited for the concepts alone that it names; default: as the concepts say.

    Raises:
        MethodError: a concept is of another base or another metric, or the concepts do not go together; lists all.
    """
    concepts = sorted(concepts, key=lambda concept: concept.token)
    _check(sd, metric, concepts, base)
    key_lock = _common([c.key_lock for c in concepts], "key_lock") if key_lock is None else key_lock
    bypass = _common([c.bypass for c in concepts], "bypass") if bypass is None else bypass
    model = nnx.merge(*nnx.split(sd))
    model.family = replace(sd.family, new_tokens=tuple(NewToken(concept.token) for concept in concepts))
    for number, encoder in enumerate(model.text_encoders):
        rows = jnp.stack([concept.words[number] for concept in concepts])
        replace_modules(encoder, TOKEN_EMBEDDING, lambda _, embed, rows=rows: ExtendedEmbed(embed, rows))

    def outputs(path: str, part: Part, _) -> jnp.ndarray:
        row = 0 if part == "keys" else 1
        return jnp.stack([concept.outputs[f"unet.{path.rpartition('.')[0]}"][row] for concept in concepts])

    edit_layers(model, outputs)
    model.concepts = nnx.data(
        Concepts(
            jnp.stack([concept.direction for concept in concepts]), _noun_ids(sd, concepts), metric,
            sd.family.text_encoders[0].vocab_size, beta=tuple(c.beta for c in concepts),
            tau=tuple(c.tau for c in concepts), bypass=bypass, key_lock=key_lock,
        )
    )  # fmt: skip
    return model


def check_base_of(concepts: Sequence[PerfusionConcept], base: str) -> None:
    """Raises MethodError, naming each, where concepts were learned on another base than the one with this digest."""
    problems = _strangers(concepts, base)
    if problems:
        raise MethodError(list_problems("these concepts are not for this base:", problems, "Give the base of each."))


def _strangers(concepts: Sequence[PerfusionConcept], base: str) -> list[str]:
    return [
        f"{concept.token} ({concept.class_noun}) was learned on another base ({concept.base}), this is {base}"
        for concept in concepts
        if concept.base != base
    ]


def _check(sd: StableDiffusion, metric: TextMetric, concepts: Sequence[PerfusionConcept], base: str) -> None:
    problems, tokens = [] if concepts else ["none is given"], [concept.token for concept in concepts]
    problems += [f"{token} is the word of two of them" for token in sorted({t for t in tokens if tokens.count(t) > 1})]
    vocabulary = tokenizers(sd.family.folder, 1)[0].get_vocab()
    widths = {f"unet.{p.rpartition('.')[0]}": m.kernel.shape[-1] for p, m in find_modules(sd.unet, LAYERS["values"])}
    problems += _strangers(concepts, base)
    for concept in concepts:
        where = f"{concept.token} ({concept.class_noun})"
        if concept.base == base and {path: array.shape[-1] for path, array in concept.outputs.items()} != widths:
            problems.append(f"{where} has outputs of other layers than this model's {len(widths)} cross-attentions")
        if concept.metric != metric.name:
            problems.append(f"{where} was learned with another text metric ({concept.metric}), this is {metric.name}")
        if concept.token in vocabulary:
            problems.append(f"{where}: the word is in the vocabulary already")
    if not problems:
        problems = _alike(metric, concepts)
    if problems:
        advice = "Give concepts that were learned on this base, each with a word of its own."
        raise MethodError(list_problems("these concepts cannot be put into one model:", problems, advice))


def _alike(metric: TextMetric, concepts: Sequence[PerfusionConcept]) -> list[str]:
    """Pairs whose Gram matrix cannot be inverted."""
    directions = np.stack([concept.direction for concept in concepts]).astype(np.float64)
    white = directions @ np.asarray(metric.factor[...], np.float64)
    gram = white @ white.T
    cosines = gram / np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    pairs = np.argwhere(np.triu(np.abs(cosines), 1) > ALIKE)
    return [f"{concepts[a].token} and {concepts[b].token} mean the same direction" for a, b in pairs]


def _common(values: list, name: str):
    if len(set(values)) > 1:
        raise MethodError(f"the concepts were learned with different {name} ({values}): say which to draw with")
    return values[0]


def _noun_ids(sd: StableDiffusion, concepts: Sequence[PerfusionConcept]) -> np.ndarray:
    """Token ids `[j, e, m]` of the class nouns, padded with -1."""
    names = tokenizers(sd.family.folder, len(sd.family.text_encoders))
    ids = [[list(t(c.class_noun, add_special_tokens=False).input_ids) for t in names] for c in concepts]
    longest = max(len(part) for concept in ids for part in concept)
    return np.asarray([[part + [-1] * (longest - len(part)) for part in concept] for concept in ids], np.int32)
