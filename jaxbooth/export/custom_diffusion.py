"""Custom Diffusion's files: diffusers' attention processors, the words, and the changes compressed.

    <path>.attn2.processor.to_k_custom_diffusion.weight    [out, in], W + Delta
    <path>.attn1.processor                                 [0]

diffusers wants a processor for every attention layer. Those without weights are entries of length zero, which it reads
as "nothing here"; its own safetensors writer leaves them out, and then cannot read the file again.
"""

import re
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxbooth.errors import ConversionError, MethodError, list_problems
from jaxbooth.export.contents import Contents, diffusers_use
from jaxbooth.export.embeddings import client_token, write_words
from jaxbooth.export.markdown import literal
from jaxbooth.export.source import SubjectNames, Trained, check_base
from jaxbooth.export.tensor_file import as_dtype, read_tensors, write_tensors
from jaxbooth.merging.compression import FRACTION, save_compressed
from jaxbooth.nn.cross_attention_delta import DeltaLinear
from jaxbooth.nn.surgery import find_modules
from jaxbooth.weights.save import on_host

FILE_NAME = "pytorch_custom_diffusion_weights.safetensors"
COMPRESSED = "delta_compressed.safetensors"
Matrix = Float[np.ndarray, "o d"]

_KEY = re.compile(r"(.+)\.processor\.(to_[kv])_custom_diffusion\.weight")


def changes(trained: Trained) -> dict[str, Matrix]:
    """W' - W of every key and value projection at the model's strength, fp32, by its path in diffusers.

    Raises:
        MethodError: the model has none.
    """
    found = {
        f"unet.{path}": np.float32(layer.strength) * on_host(layer.delta[...], "float32").T
        for path, layer in find_modules(trained.model.unet, DeltaLinear)
    }
    if not found:
        raise MethodError("this model has no changed keys and values: it was not trained by custom_diffusion")
    return found


def write_custom_diffusion(trained: Trained, folder: Path, dtype: str | None = None) -> Contents:
    """Writes the processors, each word, and the compressed changes.

    Raises:
        MethodError: the model was trained by another method.
        ConversionError: a file cannot be written.
    """
    dtype = dtype or "float32"
    deltas = changes(trained)
    write_tensors(processors(trained, dtype), folder / FILE_NAME, trained.header())
    stems = file_stems(trained)

    def name(subject: SubjectNames, encoder: int) -> str:
        return f"{stems[subject.name]}{f'.text_encoder_{encoder + 1}' if encoder else ''}.safetensors"

    files, lines = write_words(trained, folder, dtype, name, flat=True)
    save_compressed(deltas, folder / COMPRESSED, FRACTION, trained.header(), dtype=dtype)
    files = {
        FILE_NAME: f"keys and values of {len(deltas) // 2} cross-attention layers, as diffusers' attention processors",
        **files,
        COMPRESSED: "what was learned of them as low-rank factors, `<path>.up` and `<path>.down`: W' - W is their "
        f"product, cut to {FRACTION:.0%} of the sum of its singular values",
    }  # fmt: skip
    # Without `_pipeline`, diffusers reads the file and then changes nothing.
    lines = [f"pipe.unet.load_attn_procs(folder, weight_name={literal(FILE_NAME)}, _pipeline=pipe)", *lines]
    use = diffusers_use(trained, lines, prompt=trained.prompt().lower())
    note = (
        "ComfyUI, A1111 and Forge do not read this layout: for them, `jaxbooth export RUN OUT --format kohya-lora`, "
        "the nearest LoRA, or `--format merged`."
    )
    return Contents(files, (use,), (note,), ("custom-diffusion",))


def processors(trained: Trained, dtype: str) -> dict[str, np.ndarray]:
    """The tensors of diffusers' file."""
    tensors = {
        f"{path}.processor": np.zeros(0, np.float32) for path, _ in find_modules(trained.model.unet, r"\.attn1$")
    }
    for path, layer in find_modules(trained.model.unet, DeltaLinear):
        attention, _, projection = path.rpartition(".")
        weight = on_host(layer.merged().kernel[...], "float32").T
        tensors[f"{attention}.processor.{projection}_custom_diffusion.weight"] = as_dtype(weight, dtype)
    return tensors


def file_stems(trained: Trained) -> dict[str, str]:
    """What each subject's word is called on disk: the token, without what file systems do not take."""
    stems: dict[str, str] = {}
    for subject, token in zip(trained.subjects, trained.family.new_tokens, strict=True):
        stem = re.sub(r'[/\\:*?"|\x00-\x1f]', "_", client_token(token.token)).lstrip(".") or subject.name
        stems[subject.name] = stem if stem not in stems.values() else f"{stem}-{subject.name}"
    return stems


def load_custom_diffusion(file: str | Path, digest: str | None = None) -> dict[str, Matrix]:
    """W' of every key and value projection in fp32, by its path (`unet....attn2.to_k`), from the processors' file.

    Args:
        file: `pytorch_custom_diffusion_weights.safetensors`, or its folder.
        digest: Of the base at hand, to be compared with the one that the file was learned on; None: any will do.

    Raises:
        MethodError: it was learned on another base.
        ConversionError: it cannot be read, or holds anything else.
    """
    file = Path(file) / FILE_NAME if Path(file).is_dir() else Path(file)
    if digest is not None:
        check_base(file, digest)
    found, strangers = {}, []
    for key, array in read_tensors(file)[0].items():
        if match := _KEY.fullmatch(key):
            found[f"unet.{match[1]}.{match[2]}"] = array.astype(np.float32)
        elif len(array):
            strangers.append(key)
    if strangers or not found:
        problems = [f"unknown: {key}" for key in strangers] or ["no keys and values are there"]
        raise ConversionError(list_problems(f"{file} cannot be used:", problems))
    return found
