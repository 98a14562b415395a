"""A user of diffusers: opens a pipeline, loads a LoRA file, fuses it, and looks at the weights.

Knows nothing of jaxbooth, so that it also runs in an environment with other versions:
`python diffusers_client.py PIPELINE_FOLDER LORA OUT.npz` prints the clients' warnings as JSON.
"""

import json
import logging
import sys
from contextlib import contextmanager
from pathlib import Path

import diffusers
import numpy as np
import torch

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


def open_pipeline(folder):
    with open(f"{folder}/model_index.json") as file:
        name = json.load(file)["_class_name"]
    pipeline = getattr(diffusers, name).from_pretrained(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def components(pipeline) -> dict[str, torch.nn.Module]:
    return {name: pipeline.components[name] for name in COMPONENTS if pipeline.components.get(name) is not None}


def canonical(component: str, path: str) -> str:
    """transformers >= 5.6 keeps CLIPTextModel without `text_model.` in memory."""
    text = component != "unet" and path.startswith("encoder.")
    return f"{component}.{'text_model.' if text else ''}{path}"


def weights_of(pipeline) -> dict[str, np.ndarray]:
    """Weights that a LoRA may change, by canonical module path; with what is fused into them."""
    return {
        canonical(component, path).removesuffix(".base_layer"): module.weight.detach().numpy().copy()
        for component, part in components(pipeline).items()
        for path, module in part.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and ".lora_" not in path
    }


@contextmanager
def client_warnings():
    """Collects whatever diffusers, transformers and PEFT log as a warning or worse."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    handler = Collector(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "peft")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield messages
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def changes(folder, lora) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """(base weights, what `load_lora_weights` and `fuse_lora` add to them, warnings)."""
    pipeline = open_pipeline(folder)
    base = weights_of(pipeline)
    with client_warnings() as messages:
        lora = Path(lora)
        # Before 0.42 diffusers wants the name of the file apart when the hub is out of reach.
        pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
        pipeline.fuse_lora()
    after = weights_of(pipeline)
    assert after.keys() == base.keys()
    return base, {path: after[path] - base[path] for path in base}, messages


def main() -> None:
    folder, lora, out = sys.argv[1:]
    base, change, messages = changes(folder, lora)
    np.savez(out, **{f"base/{key}": value for key, value in base.items()}, **change)
    print(json.dumps(messages))


if __name__ == "__main__":
    main()
