"""Several subjects in one model, after each was learned by itself: `jaxbooth merge A B ... OUT`."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxbooth.data.prompts import render
from jaxbooth.errors import MethodError, list_problems
from jaxbooth.export.formats import check_new_folder
from jaxbooth.export.perfusion import perfusion_concepts, save_perfusion
from jaxbooth.families import NewToken, with_new_tokens
from jaxbooth.merging.activations import input_moments
from jaxbooth.merging.captions import captions
from jaxbooth.merging.constrained import CONSTRAINT_PROMPTS, constraint_rows, merge_weights
from jaxbooth.merging.gating import gate_together
from jaxbooth.merging.gram import Gram
from jaxbooth.merging.least_squares import fuse_weights, input_moment
from jaxbooth.pipeline import StableDiffusion, encode_text, tokenizers
from jaxbooth.run_folder import RunFolder
from jaxbooth.trained import MERGE_RECORD, TrainedRun, load_run
from jaxbooth.training.state import flatten, unflatten
from jaxbooth.weights.save import save_pipeline

How = Literal["sum", "constrained", "least-squares", "gating"]
HOW: dict[str, tuple[How, ...]] = {  # by method, the best first
    "lora": ("sum", "least-squares"),
    "pivotal": ("sum", "least-squares"),
    "custom_diffusion": ("constrained", "sum", "least-squares"),
    "textual_inversion": ("sum",),
    "perfusion": ("gating",),
}
TABLE = "token_embedding.embedding"
READS_TEXT = re.compile(r"attn2\.to_[kv]\.")
CAPTIONS = 1000  # of the constrained merge's regulariser (Kumari et al. 2023, section 3.3)
Flat = dict[str, np.ndarray]


@dataclass(frozen=True)
class Concept:
    """One run's share: what it changed of the base, its new words' rows, and its subject's words."""

    name: str
    changed: Flat  # dotted name -> the run's own weights
    rows: list[np.ndarray]  # of each text encoder, [n, d]
    new_tokens: tuple[NewToken, ...]
    token: str | None
    class_noun: str


def merge_runs(sources: list[Path], out: Path, how: How | None = None, strengths: list[float] | None = None) -> Path:
    """Merges adapter runs over one base: OUT/merge.json with OUT/pipeline or, for gating, a file for each concept.

    Args:
        sources: Run folders of one method and one base.
        out: A new folder.
        how: `sum` of the changes; `constrained` (Kumari et al. 2023, Equation 4); `least-squares` (Gu et al. 2023);
            `gating` (Tewel et al. 2023); default: what suits the method best.
        strengths: Of each run; default: 1.

    Raises:
        MethodError: the runs cannot be merged, or not in this way; lists every reason.
    """
    runs = [load_run(RunFolder(source)) for source in sources]
    strengths = strengths or [1.0] * len(runs)
    how = check(runs, sources, how, strengths)
    check_new_folder(out)
    record = {"how": how, "runs": [str(source) for source in sources], "strengths": strengths}
    if how == "gating":
        first = runs[0].prepared.config
        record |= {"base": first.base.path, "captions": first.method.covariance_captions}
        record["concepts"] = write_concepts(runs, out)
    else:
        model, record["figures"] = merged(runs, how, strengths)
        save_pipeline(model, out / "pipeline")
    (out / MERGE_RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return out


def write_concepts(runs: list[TrainedRun], out: Path) -> list[str]:
    """Each run's Perfusion concepts as files in OUT, after trying that they go together; returns their names."""
    concepts = [concept for run in runs for concept in perfusion_concepts(run.source())]
    gate_together(runs[0].sd, runs[0].attached().concepts.metric, concepts, runs[0].base_digest)
    out.mkdir(parents=True, exist_ok=True)
    names = [f"concept-{number}.safetensors" for number in range(len(concepts))]
    for concept, name in zip(concepts, names, strict=True):
        save_perfusion(concept, out / name)
    return names


def check(runs: list[TrainedRun], sources: list[Path], how: How | None, strengths: list[float]) -> How:
    """The way to merge. Raises MethodError with everything that stands against it."""
    problems = [] if len(runs) > 1 else ["one run alone: give two or more"]
    kinds = sorted({run.prepared.config.method.type for run in runs})
    if len(kinds) > 1:
        problems.append(f"they are of several methods ({', '.join(kinds)}); merge runs of one")
    ways = HOW.get(kinds[0], ())
    if not ways:
        problems.append(
            f"{kinds[0]} runs cannot be merged; methods that can: {', '.join(HOW)}, and perfusion by gating"
        )
    elif how is not None and how not in ways:
        problems.append(f"{kinds[0]} runs merge by {' or '.join(ways)}, not by {how}")
    digests = {run.base_digest for run in runs}
    if len(digests) > 1:
        pairs = zip(sources, runs, strict=True)
        named = [f"{source} on {run.prepared.config.base.path} ({run.base_digest})" for source, run in pairs]
        problems.append(f"they stand on different bases: {', '.join(named)}")
    tokens = [subject.token for run in runs for subject in run.prepared.config.subjects]
    twice = sorted({str(token) for token in tokens if tokens.count(token) > 1})
    if twice and any(run.prepared.config.method.vectors_per_token for run in runs):
        problems.append(f"the new token {', '.join(twice)} is used twice: train with a token of its own for each")
    if kinds == ["perfusion"] and any(strength != 1.0 for strength in strengths):
        problems.append("gating keeps every concept whole: leave the strengths at 1")
    if len(strengths) != len(runs):
        problems.append(f"{len(strengths)} strengths for {len(runs)} runs")
    if problems:
        raise MethodError(list_problems("these runs cannot be merged:", problems))
    return how or ways[0]


def merged(runs: list[TrainedRun], how: How, strengths: list[float]) -> tuple[StableDiffusion, dict]:
    """The model of several runs, and figures of the merge."""
    base = arrays(runs[0].sd)
    concepts = [concept(run, strength) for run, strength in zip(runs, strengths, strict=True)]
    with_words = add_words(runs[0].sd, base, concepts)
    if how == "sum":
        new, report = summed(base, concepts), {}
    elif how == "constrained":
        new, report = constrained(base, concepts, with_words)
    else:
        new, report = least_squares(base, concepts, runs)
    return replaced(with_words, new), report


def arrays(sd: StableDiffusion) -> Flat:
    """The UNet's and the text encoders' parameters by dotted name."""
    tree = StableDiffusion(sd.unet, None, list(sd.text_encoders), sd.family)
    return {name: value for name, value in flatten(nnx.state(tree, nnx.Param)).items()}


def concept(run: TrainedRun, strength: float) -> Concept:
    """What one run changed; unchanged arrays are left out."""
    base, plain = arrays(run.sd), run.plain(strength)
    changed, rows = {}, []
    for name, value in arrays(plain).items():
        if name.endswith(TABLE) and value.shape != base[name].shape:
            rows.append(np.asarray(value[base[name].shape[0] :], np.float32))
        elif value is not base[name] and np.any(np.asarray(value) != np.asarray(base[name])):
            changed[name] = np.asarray(value, np.float64)
    subject = run.prepared.config.subjects[0]
    return Concept(subject.name, changed, rows, plain.family.new_tokens, subject.token, subject.class_noun)


def add_words(sd: StableDiffusion, base: Flat, concepts: list[Concept]) -> StableDiffusion:
    """The base with every concept's new words in its vocabulary."""
    family = replace(sd.family, new_tokens=tuple(token for concept in concepts for token in concept.new_tokens))
    new = {}
    for number in range(len(sd.text_encoders)):
        name = f"text_encoders.{number}.text_model.embeddings.{TABLE}"
        rows = [concept.rows[number] for concept in concepts if concept.rows]
        if rows:
            new[name] = jnp.concatenate([base[name], *(jnp.asarray(part, base[name].dtype) for part in rows)])
    grown = replaced(sd, new)
    grown.family = with_new_tokens(family)
    return grown


def replaced(sd: StableDiffusion, new: Flat) -> StableDiffusion:
    """A copy of a plain model with some of its arrays replaced, in the dtype that they had."""
    graphdef, state = nnx.split(sd)
    flat = flatten(state)
    flat |= {name: jnp.asarray(value, flat[name].dtype) for name, value in new.items()}
    return nnx.merge(graphdef, unflatten(flat))


def summed(base: Flat, concepts: list[Concept]) -> Flat:
    """W0 + sum_i (W_i - W0): exact for factors, which a mean of factors would not be."""
    names = sorted({name for concept in concepts for name in concept.changed})
    originals = {name: np.asarray(base[name], np.float64) for name in names}
    return {
        name: originals[name] + sum(c.changed[name] - originals[name] for c in concepts if name in c.changed)
        for name in names
    }


def constrained(base: Flat, concepts: list[Concept], words: StableDiffusion) -> tuple[Flat, dict]:
    """Custom Diffusion's merge of keys and values: exact on each concept's own words, near the base elsewhere."""
    names = sorted(concepts[0].changed)
    end = tokenizers(words.family.folder, 1)[0].eos_token_id
    regulariser = _states(words, captions(CAPTIONS), end)
    originals = {name: np.asarray(base[name]).T for name in names}
    rows = [word_states(words, item, end) for item in concepts]
    weights = [{name: item.changed[name].T for name in names} for item in concepts]
    merged_weights, report = merge_weights(
        originals, weights, rows, Gram.from_features(regulariser), [item.name for item in concepts]
    )
    figures = {
        "largest constraint residual": max(row.stored_residual for row in report.values()),
        "mean drift": float(np.mean([row.stored_drift for row in report.values()])),
    }
    return {name: weight.T for name, weight in merged_weights.items()}, figures


def least_squares(base: Flat, concepts: list[Concept], runs: list[TrainedRun]) -> tuple[Flat, dict]:
    """Mix-of-Show's fusion in closed form: each layer does for each concept's inputs what its own weights did."""
    names = sorted({name for item in concepts for name in item.changed if np.ndim(base[name]) == 2})
    of_text = [name for name in names if READS_TEXT.search(name)]
    moments = []
    for run, item in zip(runs, concepts, strict=True):
        model = run.plain()
        end = tokenizers(model.family.folder, 1)[0].eos_token_id
        seen = input_moments(model, [name for name in names if name not in of_text], _prompts(item))
        # Padding would outweigh the few words that matter.
        moments.append(seen | dict.fromkeys(of_text, input_moment(word_states(model, item, end))))
    originals = {name: np.asarray(base[name], np.float64).T for name in names}
    weights = [{n: item.changed.get(n, originals[n].T).T for n in names} for item in concepts]
    fused, misfit = fuse_weights(originals, weights, moments)
    rest = summed(base, [replace(i, changed={n: w for n, w in i.changed.items() if n not in names}) for i in concepts])
    return {name: weight.T for name, weight in fused.items()} | rest, {"largest misfit": max(misfit.values())}


def word_states(sd: StableDiffusion, item: Concept, end: int) -> np.ndarray:
    """Text states of a concept's own words, in Custom Diffusion's two prompts, [m, d]."""
    prompts = [render(prompt, item.token, item.class_noun) for prompt in CONSTRAINT_PROMPTS]
    ids = sd.tokenize(prompts)
    states = np.asarray(encode_text(sd, ids)[0], np.float64)
    token = tokenizers(sd.family.folder, 1, sd.family.new_tokens)[0](item.token or "", add_special_tokens=False)
    first = constraint_rows(ids[0, 0], states[0], end)
    return np.concatenate([first, constraint_rows(ids[1, 0], states[1], end, token.input_ids)])


def _prompts(item: Concept) -> list[str]:
    templates = ("a {token} {class_noun}", "a photo of a {token} {class_noun}", "a {token} {class_noun} in the snow",
                 "a {token} {class_noun} on the beach")  # fmt: skip
    return [render(template, item.token, item.class_noun) for template in templates]


def _states(sd: StableDiffusion, texts: list[str], end: int) -> np.ndarray:
    """States of every real token of some texts, [m, d]."""
    parts = []
    for start in range(0, len(texts), 100):
        ids = sd.tokenize(texts[start : start + 100])
        real = np.cumsum(ids[:, 0] == end, axis=1) - (ids[:, 0] == end) == 0
        parts.append(np.asarray(encode_text(sd, ids)[0], np.float64)[real])
    return np.concatenate(parts)
