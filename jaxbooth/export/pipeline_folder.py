"""The whole model as a diffusers pipeline folder, with the adapter folded into its weights."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxbooth.export.contents import Contents, Use, diffusers_use
from jaxbooth.export.markdown import code
from jaxbooth.export.source import Trained
from jaxbooth.nn.key_locked import KeyLockedLinear
from jaxbooth.nn.surgery import find_modules
from jaxbooth.weights.save import save_pipeline


def write_pipeline(trained: Trained, folder: Path, dtype: str | None = None) -> Contents:
    """Writes `trained.plain`; new words are in its tokenizers and at the end of its token tables.

    Args:
        trained: Any method.
        folder: Absent or empty.
        dtype: Of the weights; None: as they are.

    Raises:
        ConversionError: the folder is not empty or cannot be made.
    """
    save_pipeline(trained.plain, folder, dtype=dtype)
    family = trained.family
    files = {"model_index.json": "what the folder holds: open it with diffusers"}
    files |= {name: "weights and their configuration" for name in family.component_names}
    words = ", ".join(code(name) for token in family.new_tokens for name in token.names)
    with_words = f", {words} added" if words else ""
    files |= {name: f"the base's vocabulary{with_words}" for name in family.tokenizer_names}
    files["scheduler"] = "the base's noise schedule"
    kohya = "Give the folder as `--pretrained_model_name_or_path` to train further."
    notes = _notes(trained)
    if words:
        kohya += " Its scripts bring a tokenizer of their own, which does not know the new words."
    return Contents(files, (diffusers_use(trained, [], base="folder"), Use("kohya", kohya)), notes)


def _notes(trained: Trained) -> tuple[str, ...]:
    elsewhere = (
        "ComfyUI, A1111 and Forge load single-file checkpoints: convert the folder with diffusers' "
        "`convert_diffusers_to_original_stable_diffusion.py` (or `..._sdxl.py`)."
    )
    if trained.method is None or trained.method.merge_is_exact:
        return (elsewhere,)
    subject, class_noun = trained.prompt(), trained.prompt({s.token: "" for s in trained.subjects})
    errors = [f"{projection_error(trained, prompt):.1%} on {code(prompt)}" for prompt in (subject, class_noun)]
    note = (
        f"Approximate: {trained.method.type} looks at the prompt and cannot be folded into weights. Relative error of "
        f"cross-attention's keys and values: {', '.join(errors)}. Draw with `jaxbooth sample` for the exact model."
    )
    return note, elsewhere


def projection_error(trained: Trained, prompt: str) -> float:
    """|merged - attached| / |attached| of all gated keys and values over the states of a prompt (Frobenius norm)."""
    attached, plain = trained.model, dict(find_modules(trained.plain.unet, r"attn2\.to_[kv]$"))
    ids = jnp.asarray(attached.tokenize([prompt]))
    gated, _ = attached.encode_ids(ids)
    states, _ = attached.encode_plain(ids)
    missed = whole = 0.0
    for path, layer in find_modules(attached.unet, KeyLockedLinear):
        exact = np.asarray(layer(gated), np.float64)
        missed += np.sum((np.asarray(plain[path](states), np.float64) - exact) ** 2)
        whole += np.sum(exact**2)
    return float(np.sqrt(missed / whole)) if whole else 0.0
