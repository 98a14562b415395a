"""What can be exported as what: one table, and the one way in."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

from jaxbooth.errors import ConversionError, MethodError
from jaxbooth.export.card import write_card
from jaxbooth.export.contents import Contents
from jaxbooth.export.custom_diffusion import write_custom_diffusion
from jaxbooth.export.embeddings import write_a1111_embeddings, write_embeddings
from jaxbooth.export.lora import write_kohya_lora, write_peft_lora
from jaxbooth.export.perfusion import write_perfusion
from jaxbooth.export.pipeline_folder import write_pipeline
from jaxbooth.export.source import Trained
from jaxbooth.export.tensor_file import DTYPES
from jaxbooth.methods.base import Method
from jaxbooth.methods.custom_diffusion import CustomDiffusion
from jaxbooth.methods.lora import LoRA
from jaxbooth.methods.perfusion import Perfusion
from jaxbooth.methods.textual_inversion import TextualInversion


@dataclass(frozen=True)
class Format:
    """One kind of files.

    Attributes:
        what: What the files are, for their card.
        write: Writes them into an empty folder, in a dtype (None: the format's own), and tells what is there. On
            several processes all call it, each with a folder of its own.
        serves: Methods (with those derived from them) that it can be written of; None: all.
        own: Of those, the ones whose own files these are: written after training.
    """

    what: str
    write: Callable[[Trained, Path, str | None], Contents]
    serves: tuple[type[Method], ...] | None = None
    own: tuple[type[Method], ...] = ()

    def serves_method(self, method: Method | None) -> bool:
        """Whether a model of this method can be written; of a base as it is (None), formats for all methods can."""
        return self.serves is None or isinstance(method, self.serves)


FORMATS: dict[str, Format] = {
    "diffusers": Format("A whole pipeline in diffusers' layout: what was learned is in its weights.", write_pipeline),
    "merged": Format("A whole pipeline in diffusers' layout, the adapter folded into its weights.", write_pipeline),
    "peft-lora": Format("A LoRA in diffusers' layout.", write_peft_lora, (LoRA, CustomDiffusion), (LoRA,)),
    "kohya-lora": Format(
        "A LoRA in kohya's layout, for ComfyUI, A1111, Forge and kohya's scripts.",
        write_kohya_lora,
        (LoRA, CustomDiffusion),
        (LoRA,),
    ),
    "ti": Format(
        "A new word (Textual Inversion) in diffusers' layout.",
        write_embeddings,
        (TextualInversion,),
        (TextualInversion,),
    ),
    "a1111-ti": Format(
        "A new word (Textual Inversion) for A1111, Forge, ComfyUI and kohya's scripts.",
        write_a1111_embeddings,
        (TextualInversion,),
        (TextualInversion,),
    ),
    "custom-diffusion": Format(
        "Keys and values of cross-attention and a new word (Custom Diffusion) in diffusers' layout.",
        write_custom_diffusion,
        (CustomDiffusion,),
        (CustomDiffusion,),
    ),
    "perfusion": Format(
        "A concept (Perfusion): its word, its direction, and its keys' and values' outputs. jaxbooth reads it.",
        write_perfusion,
        (Perfusion,),
        (Perfusion,),
    ),
}


def check_format(name: str, method: Method | None, dtype: str | None = None) -> Format:
    """The format of a name, for a method.

    Raises:
        MethodError: there is no such format or dtype, or the method cannot be written in it; names those that can.
    """
    able = ", ".join(key for key, form in FORMATS.items() if form.serves_method(method))
    whose = f"method {method.type}" if method is not None else "a model without a run"
    if name not in FORMATS:
        raise MethodError(f"format {name} is not known. {whose} can be exported as {able}")
    if not FORMATS[name].serves_method(method):
        raise MethodError(f"{whose} cannot be exported as {name}; it can be as {able}")
    if dtype is not None and dtype not in DTYPES:
        raise MethodError(f"dtype {dtype} is not known. Dtypes of exported files: {', '.join(DTYPES)}")
    return FORMATS[name]


def own_formats(method: Method) -> tuple[str, ...]:
    """The formats that are written after training: small files of an adapter."""
    return tuple(name for name, form in FORMATS.items() if isinstance(method, form.own))


def check_new_folder(folder: Path) -> None:
    """Raises a ConversionError unless a folder is absent or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConversionError(f"{folder} is not empty: give a new folder, nothing is overwritten")


def export(trained: Trained, name: str, out: str | Path, dtype: str | None = None) -> Path:
    """Writes a trained model and its card; the folder is whole or not there.

    On several processes all must call it; the first one writes.

    Args:
        trained: The model.
        name: One of `FORMATS`.
        out: Is made; what is there already is never overwritten.
        dtype: Dtype of the tensors, e.g. `float16`; default: a pipeline's as they are, an adapter's float32.

    Raises:
        MethodError: the method cannot be written in this format.
        ConversionError: the folder is not empty, or cannot be written.
    """
    form, out = check_format(name, trained.method, dtype), Path(out).absolute()
    check_new_folder(out)
    first = jax.process_index() == 0
    draft = _make(out.with_name(f".{out.name}.writing")) if first else Path(tempfile.mkdtemp())
    try:
        contents = form.write(trained, draft, dtype)
        write_card(trained, form.what, contents, draft)
        if first:
            if out.exists():
                out.rmdir()
            draft.replace(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return out


def _make(folder: Path) -> Path:
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConversionError(f"{folder.parent} cannot be written ({error.strerror})") from error
    return folder
