"""One safetensors file, read with its header and written whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  (teaches numpy the name bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxbooth.errors import ConversionError

DTYPES = ("float32", "float16", "bfloat16")


def read_tensors(file: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and header entries of a safetensors file.

    Raises:
        ConversionError: it is missing or damaged, or another kind of file (pickles are never opened).
    """
    file = Path(file)
    if not file.is_file():
        raise ConversionError(f"{file} is not a file: give the .safetensors file itself")
    try:
        with safe_open(file, framework="numpy") as handle:
            return {key: handle.get_tensor(key) for key in sorted(handle.keys())}, handle.metadata() or {}
    except (SafetensorError, OSError) as error:
        advice = "download it again"
        if file.suffix != ".safetensors":
            advice = "only safetensors files are read; pickles can run code when opened"
        raise ConversionError(f"{file} cannot be read ({error}): {advice}") from error


def write_tensors(tensors: Mapping[str, np.ndarray], file: str | Path, header: Mapping[str, str]) -> Path:
    """Writes the file, with PyTorch's `format` entry in its header, replacing what was there.

    Raises:
        ConversionError: the file cannot be written.
    """
    file = Path(file)
    draft = file.with_name(f".{file.name}.{os.getpid()}.writing")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays = {key: np.ascontiguousarray(array).reshape(array.shape) for key, array in tensors.items()}
        save_file(arrays, draft, metadata={"format": "pt"} | {key: str(value) for key, value in header.items()})
        draft.replace(file)
    except OSError as error:
        raise ConversionError(f"{file} cannot be written ({error.strerror or error})") from error
    finally:
        draft.unlink(missing_ok=True)
    return file


def as_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    """The array in one of `DTYPES`.

    Raises:
        ConversionError: another dtype, or a number becomes infinite in it.
    """
    if dtype not in DTYPES:
        raise ConversionError(f"dtype {dtype} is not known. Dtypes of exported files: {', '.join(DTYPES)}")
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if not np.isfinite(cast).all():
        raise ConversionError(f"a weight is too large for {dtype}: export as bfloat16 or float32")
    return cast
