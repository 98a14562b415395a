"""A trained model's low-rank changes as LoRA files: for diffusers, and for kohya's, A1111's and ComfyUI's loaders."""

import shlex
from pathlib import Path

import numpy as np

from jaxbooth.errors import MethodError
from jaxbooth.export.contents import Contents, Use, diffusers_use
from jaxbooth.export.custom_diffusion import changes
from jaxbooth.export.embeddings import a1111_names, write_a1111_embeddings, write_words
from jaxbooth.export.kohya_lora import save_kohya_lora
from jaxbooth.export.lora_file import load_lora
from jaxbooth.export.lora_weights import LoRALayer, LoRAWeights, check_fit
from jaxbooth.export.markdown import code, literal
from jaxbooth.export.peft_lora import FILE_NAME, save_peft_lora
from jaxbooth.export.source import Trained, check_base
from jaxbooth.merging.compression import FRACTION
from jaxbooth.merging.lora_sum import svd_lora
from jaxbooth.methods.custom_diffusion import CustomDiffusion
from jaxbooth.methods.lora import LoRA
from jaxbooth.nn.lora import LowRank
from jaxbooth.nn.surgery import find_modules
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.weights.save import on_host
from jaxbooth.weights.torch_keys import Layout, entries

EMBEDDINGS = "embeddings"  # sub-folder of the words beside a kohya file, whose name may be a word's
DORA_NOTE = (
    "This is DoRA. diffusers leaves its magnitudes out of this layout with a warning and then draws wrongly: for it, "
    "`jaxbooth export RUN OUT --format peft-lora`. Versions of the other clients differ in what they take magnitudes "
    "for: if pictures look wrong, `--format merged`."
)


def lora_weights(trained: Trained) -> LoRAWeights:
    """Every low-rank layer under its module's path in PyTorch, with the model's strength folded in.

    Raises:
        MethodError: the model has no low-rank layers, or a strength other than 1 and DoRA.
    """
    found = {
        f"{component}.{path}": _layer(layer, trained)
        for component, module in trained.model.components()
        for path, layer in find_modules(module, LowRank)
    }
    if not found:
        raise MethodError("this model has no low-rank layers: there is no LoRA to export")
    return found


def _layer(layer: LowRank, trained: Trained) -> LoRALayer:
    down, up = on_host(layer.lora_a[...], "float32"), on_host(layer.lora_b[...], "float32").T
    is_conv = down.ndim == 4
    magnitude = None if layer.magnitude is None else on_host(layer.magnitude[...], "float32")
    if magnitude is not None and layer.strength != 1:
        raise MethodError(
            f"strength {layer.strength:g}: a DoRA file holds magnitudes, which have no strength. Leave it at 1 and set "
            "it in the client, or export as merged."
        )
    up = up if layer.strength == 1 else np.float32(layer.strength) * up
    rank, method = down.shape[-1], trained.method
    is_lora = isinstance(method, LoRA)
    return LoRALayer(
        down=(Layout.HWIO_OIHW if is_conv else Layout.TRANSPOSE).to_torch(down),
        up=np.ascontiguousarray(up[:, :, None, None] if is_conv else up),
        # As configured, and not from the scale: a client shows what was asked for.
        alpha=float((method.alpha or rank) if is_lora else layer.scale * rank),
        magnitude=magnitude,
        use_rslora=is_lora and method.use_rslora,
    )


def nearest_lora(trained: Trained) -> tuple[LoRAWeights, tuple[str, ...]]:
    """`lora_weights`, or of Custom Diffusion the leading directions of its changes, with a note on what they leave out.

    Raises:
        MethodError: the model has neither.
    """
    if not isinstance(trained.method, CustomDiffusion):
        return lora_weights(trained), ()
    deltas = changes(trained)
    weights = svd_lora(deltas, kept_fraction=FRACTION)
    ranks = [layer.rank for layer in weights.values()]
    note = (
        f"The nearest LoRA of what Custom Diffusion learned: ranks {min(ranks)} to {max(ranks)}, relative error of the "
        f"change of the weights {relative_error(weights, deltas):.3g}."
    )
    return weights, (note,)


def relative_error(weights: LoRAWeights, deltas: dict[str, np.ndarray]) -> float:
    """|LoRA - change| / |change| over all weights together (Frobenius norm); 0 if nothing has changed."""
    missed = np.sqrt(sum(np.linalg.norm(weights[path].delta() - delta) ** 2 for path, delta in deltas.items()))
    whole = np.sqrt(sum(np.linalg.norm(delta) ** 2 for delta in deltas.values()))
    return float(missed / whole) if whole else 0.0


def write_peft_lora(trained: Trained, folder: Path, dtype: str | None = None) -> Contents:
    """`pytorch_lora_weights.safetensors`, and beside it the words that were learned with it."""
    weights, notes = nearest_lora(trained)
    save_peft_lora(weights, folder, metadata=trained.header(), dtype=dtype or "float32")
    files = {FILE_NAME: f"low-rank changes of {len(weights)} layers in diffusers' layout"}
    lines = [f"pipe.load_lora_weights(folder, weight_name={literal(FILE_NAME)})"]
    prompt = trained.prompt()
    if trained.family.new_tokens:
        words, word_lines = write_words(trained, folder, dtype)
        files |= words
        lines, prompt = [*word_lines, *lines], prompt.lower()
    elsewhere = (
        "ComfyUI, A1111, Forge and kohya's scripts load this layout by halves: for them, "
        "`jaxbooth export RUN OUT --format kohya-lora`."
    )
    return Contents(files, (diffusers_use(trained, lines, prompt=prompt),), (*notes, elsewhere), ("lora",))


def write_kohya_lora(trained: Trained, folder: Path, dtype: str | None = None) -> Contents:
    """NAME.safetensors in kohya's layout, and in `embeddings/` the words that were learned with it."""
    weights, notes = nearest_lora(trained)
    family, file = trained.family, f"{trained.name}.safetensors"
    header = trained.header() | {"ss_sd_model_name": trained.base.title, "ss_steps": str(trained.steps)}
    header["modelspec.trigger_phrase"] = trained.prompt()
    save_kohya_lora(
        weights, folder / file, family_name=family.name, metadata=header, prediction_type=family.prediction_type,
        layers_per_block=family.unet.layers_per_block[0], dtype=dtype or "float32",
    )  # fmt: skip
    files = {file: f"low-rank changes of {len(weights)} layers in kohya's layout"}
    words = {}
    if family.new_tokens:
        inside = write_a1111_embeddings(trained, folder / EMBEDDINGS, dtype)
        files |= {f"{EMBEDDINGS}/{name}": what for name, what in inside.files.items()}
        stems = a1111_names(trained)
        words = {subject.token: stems[subject.name] for subject in trained.subjects}
    is_dora = any(layer.magnitude is not None for layer in weights.values())
    uses = _client_uses(trained, file, words)
    if not is_dora and not words:  # diffusers cannot read the words of this layout by itself
        lines = [f"pipe.load_lora_weights(folder, weight_name={literal(file)})"]
        uses = (*uses, diffusers_use(trained, lines))
    return Contents(files, uses, (*notes, *([DORA_NOTE] if is_dora else [])), ("lora",))


def _client_uses(trained: Trained, file: str, words: dict[str, str]) -> tuple[Use, ...]:
    def copied(loras: str, embeddings: str) -> str:
        return f"Copy {code(file)} to `{loras}`" + (f", what is in `{EMBEDDINGS}` to `{embeddings}`" if words else "")

    comfy = trained.prompt({token: f"embedding:{word}" for token, word in words.items()})
    a1111 = f"{trained.prompt(words)} <lora:{trained.name}:1>"
    script = "sdxl_gen_img.py" if trained.family.name == "sdxl" else "gen_img.py"
    command = f"python {script} --ckpt BASE.safetensors --network_module networks.lora --network_weights {file}"
    if words:
        inside = " ".join(f"{EMBEDDINGS}/{word}.safetensors" for word in words.values())
        command += f" --textual_inversion_embeddings {inside}"
    command += f" --prompt {shlex.quote(trained.prompt(words))}"
    where = copied("ComfyUI/models/loras", "ComfyUI/models/embeddings")
    node = f"{where}. Put a *Load LoRA* node between checkpoint and sampler, and write {code(comfy)}."
    return (
        Use("ComfyUI", node),
        Use("A1111, Forge", f"{copied('models/Lora', 'embeddings')}, and write {code(a1111)}."),
        Use("kohya", code=command, language="bash"),
    )


def load_adapter_lora(file: str | Path, sd: StableDiffusion, digest: str | None = None) -> LoRAWeights:
    """Reads a LoRA of either layout for a model.

    Args:
        file: A safetensors file, or a folder with `pytorch_lora_weights.safetensors`.
        sd: The model, plain.
        digest: Of the model as a base, to be compared with the one that the file was learned on; None: any will do.

    Raises:
        MethodError: it was learned on another base.
        ConversionError: its layers do not fit; lists all of them.
    """
    file = Path(file) / FILE_NAME if Path(file).is_dir() else Path(file)
    if digest is not None:
        check_base(file, digest)
    shapes = {
        f"{component}.{entry.torch_key.removesuffix('.weight')}": entry.torch_shape
        for component, module in sd.components()
        for entry in entries(module)
        if entry.torch_key.endswith(".weight")
    }
    weights = load_lora(file, shapes)
    check_fit(weights, shapes, str(file))
    return weights
