"""New words as files: in diffusers' layout, and in the one that A1111, Forge, ComfyUI and kohya's trainers read.

learned_embeds.safetensors      {"<rex>": [n, d]}     diffusers; SDXL: learned_embeds_2.safetensors beside it
rex.safetensors                 {"emb_params": [n, d]}                        the others, SD 1 and 2
                                {"clip_l": [n, 768], "clip_g": [n, 1280]}     the others, SDXL
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxbooth.errors import ConversionError, MethodError
from jaxbooth.export.contents import Contents, Use, diffusers_use
from jaxbooth.export.markdown import code, literal
from jaxbooth.export.source import SubjectNames, Trained, check_base
from jaxbooth.export.tensor_file import as_dtype, read_tensors, write_tensors
from jaxbooth.families import NewToken
from jaxbooth.methods.tokens import new_token_rows
from jaxbooth.nn.clip_text import LEGACY_EOS_TOKEN_ID
from jaxbooth.pipeline import tokenizers
from jaxbooth.weights.save import on_host

FILE_NAME = "learned_embeds.safetensors"  # what diffusers looks for in a folder
A1111_KEYS = {1: ("emb_params",), 2: ("clip_l", "clip_g")}  # by number of text encoders
TAGS = ("textual_inversion",)
Vectors = Float[np.ndarray, "n d"]
FileName = Callable[[SubjectNames, int], str]


def token_vectors(trained: Trained) -> list[tuple[SubjectNames, NewToken, tuple[Vectors, ...]]]:
    """Each new word's vectors in each text encoder, fp32.

    Raises:
        MethodError: the model has no new words.
    """
    tables = [on_host(rows, "float32") for rows in new_token_rows(trained.model)]
    if not tables or not trained.family.new_tokens:
        raise MethodError("this model has learned no new word: there is no embedding to export")
    found, first = [], 0
    for subject, token in zip(trained.subjects, trained.family.new_tokens, strict=True):
        found.append((subject, token, tuple(table[first : first + token.vectors] for table in tables)))
        first += token.vectors
    return found


def client_token(token: str) -> str:
    """How diffusers is told a word: its tokenizers make prompts lower case, and then miss a word with capitals."""
    return token.lower()


def write_embeddings(trained: Trained, folder: Path, dtype: str | None = None) -> Contents:
    """`learned_embeds.safetensors` (and `learned_embeds_2` for SDXL), one key each; with several subjects one per each.

    Raises:
        MethodError: the model has no new words.
        ConversionError: a file cannot be written.
    """
    files, lines = write_words(trained, folder, dtype)
    return Contents(files, (diffusers_use(trained, lines, prompt=trained.prompt().lower()),), tags=TAGS)


def write_words(
    trained: Trained, folder: Path, dtype: str | None, name: FileName | None = None, flat: bool = False
) -> tuple[dict[str, str], list[str]]:
    """Writes diffusers' layout; returns what each file is, and the Python lines that put the words into `pipe`.

    Args:
        trained: A model with new words.
        folder: Where to.
        dtype: Of the tensors; None: float32.
        name: Gives a file's name for a subject and a text encoder's number; default: as `write_embeddings`.
        flat: Writes a single vector as `[d]`, as Custom Diffusion's scripts do.
    """
    files, lines = {}, []
    for subject, token, vectors in token_vectors(trained):
        for encoder, rows in enumerate(vectors):
            file = (name or _learned_embeds(trained))(subject, encoder)
            word, part = client_token(token.token), f"text_encoder{'_2' if encoder else ''}"
            rows = rows[0] if flat and len(rows) == 1 else rows
            write_tensors({word: as_dtype(rows, dtype or "float32")}, folder / file, trained.header())
            files[file] = f"the word {code(word)} for `{part}`, {_count(token)}"
            options = f", text_encoder=pipe.{part}, tokenizer=pipe.{part.replace('text_encoder', 'tokenizer')}"
            options = options if len(vectors) > 1 else ""
            lines.append(f"pipe.load_textual_inversion(folder, weight_name={literal(file)}{options})")
    return files, lines + _end_of_text(trained)


def _learned_embeds(trained: Trained) -> FileName:
    def name(subject: SubjectNames, encoder: int) -> str:
        file = FILE_NAME.replace(".", f"_{encoder + 1}.") if encoder else FILE_NAME
        return file if len(trained.subjects) == 1 else f"{subject.name}.{file}"

    return name


def write_a1111_embeddings(trained: Trained, folder: Path, dtype: str | None = None) -> Contents:
    """One file for each word, whose name is what A1111, Forge and ComfyUI know the word by.

    Raises:
        MethodError: the model has no new words.
        ConversionError: a file cannot be written.
    """
    files, words, stems = {}, {}, a1111_names(trained)
    for subject, token, vectors in token_vectors(trained):
        file = f"{stems[subject.name]}.safetensors"
        keys = A1111_KEYS[len(vectors)]
        tensors = {key: as_dtype(rows, dtype or "float32") for key, rows in zip(keys, vectors, strict=True)}
        write_tensors(tensors, folder / file, trained.header() | {"name": stems[subject.name]})
        files[file] = f"the word {code(stems[subject.name])}, {_count(token)}"
        words[token.token] = stems[subject.name]
    return Contents(files, _a1111_uses(trained, list(files), words), tags=TAGS)


def a1111_names(trained: Trained) -> dict[str, str]:
    """The word of each subject (by its name) for clients that go by the file's name: the token without its signs.

    A word that the vocabulary has is set apart with `emb-`, or every prompt with it would show the subject.
    """
    tokenizer, names = tokenizers(trained.family.folder, 1)[0], {}
    for subject, token in zip(trained.subjects, trained.family.new_tokens, strict=True):
        stem = re.sub(r"[^A-Za-z0-9_-]+", "", token.token).strip("-_") or subject.name
        if len(tokenizer(stem, add_special_tokens=False).input_ids) == 1:
            stem = f"emb-{stem}"
        names[subject.name] = stem if stem.lower() not in map(str.lower, names.values()) else f"{stem}-{subject.name}"
    return names


def load_embeddings(file: str | Path, digest: str | None = None) -> dict[str, Vectors]:
    """The tensors of an embedding's file in either layout, `[n, d]` in fp32, by their keys.

    Args:
        file: A safetensors file.
        digest: Of the base at hand, to be compared with the one that the file was learned on; None: any will do.

    Raises:
        MethodError: it was learned on another base.
        ConversionError: it cannot be read or holds no embedding.
    """
    if digest is not None:
        check_base(file, digest)
    tensors, _ = read_tensors(file)
    if not (len(tensors) == 1 or set(tensors) == set(A1111_KEYS[2])) or any(t.ndim > 2 for t in tensors.values()):
        raise ConversionError(f"{file} is no embedding: it holds {', '.join(list(tensors)[:5]) or 'nothing'}")
    return {key: np.atleast_2d(tensor.astype(np.float32)) for key, tensor in tensors.items()}


def _count(token: NewToken) -> str:
    return f"{token.vectors} vector{'s' if token.vectors > 1 else ''}"


def _end_of_text(trained: Trained) -> list[str]:
    """SDXL's old configs name a wrong end of text; readers then take the largest id, which a new word's is."""
    encoder = trained.family.text_encoders[-1]
    if len(trained.family.text_encoders) < 2 or encoder.eos_token_id != LEGACY_EOS_TOKEN_ID:
        return []
    end = tokenizers(trained.family.folder, 2)[1].eos_token_id
    return [f"pipe.text_encoder_2.text_model.eos_token_id = {end}  # else a new word is taken for the end of the text"]


def _a1111_uses(trained: Trained, files: list[str], words: Mapping[str, str]) -> tuple[Use, ...]:
    shown, comfy = ", ".join(map(code, files)), {token: f"embedding:{word}" for token, word in words.items()}
    return (
        Use("ComfyUI", f"Copy {shown} to `ComfyUI/models/embeddings` and write {code(trained.prompt(comfy))}."),
        Use("A1111, Forge", f"Copy {shown} to `embeddings` and write {code(trained.prompt(words))}."),
        Use("kohya", f"`gen_img.py --textual_inversion_embeddings {' '.join(files)}`; the word is the file's name."),
    )
