"""Tensors of pipeline folders and of loaded pipelines, to be compared and to be broken."""

import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

UNET_FILE, TEXT_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"
FILES = {"unet": UNET_FILE, "vae": UNET_FILE, "text_encoder": TEXT_FILE, "text_encoder_2": TEXT_FILE}


def tensors(folder):
    """Every tensor of a pipeline folder; text encoders under the prefix that is on the hub."""
    found = {}
    for component, file in FILES.items():
        if (folder / component).is_dir():
            for key, array in load_file(folder / component / file).items():
                prefix = component.startswith("text") and key.startswith(("embeddings", "encoder", "final"))
                found[f"{component}/{'text_model.' if prefix else ''}{key}"] = array
    return found


def parameters(sd):
    return {
        f"{name}/{'.'.join(map(str, path))}": np.asarray(value[...])
        for name, module in sd.components()
        for path, value in nnx.to_flat_state(nnx.state(module, nnx.Param))
    }


def assert_same_model(ours, reference):
    ours, reference = parameters(ours), parameters(reference)
    assert ours.keys() == reference.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, reference[name], err_msg=name)


def rewrite(file, change):
    """Puts `change(tensors)` in place of a file's tensors."""
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
