"""Packs a diffusers folder into the form that ships in the package: float16, classic file layout, no leftovers.

    python configs/pocket/pack_base.py runs/pocket/pipeline jaxbooth/pocket/base

What changes on the way: weights become float16 safetensors, text encoder keys get the `text_model.` prefix that every
reader knows, the tokenizer becomes vocab.json + merges.txt, and configs lose the paths that they were saved from.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

WEIGHTS = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
EMPTY = ("safety_checker", "feature_extractor", "image_encoder")  # parts of a pipeline that the base has not
MAX_FILE_BYTES = 16 * 2**20
MAX_BYTES = 20_000_000


def pack(source: Path, out: Path, tokenizer: Path) -> None:
    """Writes the packed folder; `out` is new, or an older packed folder, which is replaced."""
    if out.exists():
        if not (out / "model_index.json").is_file():
            raise SystemExit(f"{out}: not a diffusers folder; it is left as it is")
        shutil.rmtree(out)
    for component, name in WEIGHTS.items():
        arrays = load_file(source / component / name)
        if component == "text_encoder":
            arrays = {_classic_key(key): array for key, array in arrays.items() if not key.endswith("position_ids")}
        (out / component).mkdir(parents=True)
        save_file({key: _half(key, array) for key, array in arrays.items()}, out / component / name, {"format": "pt"})
        _write_json(out / component / "config.json", _read_config(source / component / "config.json"))
    (out / "scheduler").mkdir()
    scheduler = _read_config(source / "scheduler" / "scheduler_config.json")
    _write_json(out / "scheduler" / "scheduler_config.json", scheduler)
    (out / "tokenizer").mkdir()
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, out / "tokenizer" / name)
    index = _read_config(source / "model_index.json")
    _write_json(out / "model_index.json", index | {name: [None, None] for name in EMPTY})
    _check_sizes(out)


def _classic_key(key: str) -> str:
    return key if key.startswith(("text_model.", "text_projection.")) else "text_model." + key


def _half(key: str, array: np.ndarray) -> np.ndarray:
    half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise SystemExit(f"{key}: does not fit into float16")
    return half


def _read_config(path: Path) -> dict:
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)  # where it was saved from
    if config.pop("dtype", None) or config.pop("torch_dtype", None):
        # The older name, which old and new transformers read. Not float16 as stored: a pipeline that is opened without
        # a dtype has a float32 UNet, and its text encoder has to match.
        config["torch_dtype"] = "float32"
    return config


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _check_sizes(folder: Path) -> None:
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    for path, size in sizes.items():
        print(f"{size:>10,}  {path.relative_to(folder)}")
    print(f"{sum(sizes.values()):>10,}  bytes in all")
    too_large = [str(path) for path, size in sizes.items() if size >= MAX_FILE_BYTES]
    if too_large or sum(sizes.values()) > MAX_BYTES:
        raise SystemExit(f"too large for the package (a file under 16 MiB, all under 20 MB): {too_large or folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack a diffusers folder for jaxbooth/pocket/base.")
    parser.add_argument("folder", type=Path, help="a Stable Diffusion 1.x diffusers folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder with vocab.json and merges.txt; else FOLDER/tokenizer")
    options = parser.parse_args()
    pack(options.folder, options.out, options.tokenizer or options.folder / "tokenizer")


if __name__ == "__main__":
    main()
