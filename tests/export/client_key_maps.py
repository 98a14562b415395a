"""Under which names ComfyUI and A1111 know the modules of a model, as tables made of the facts, not of their code.

Both keep the original (ldm, sgm) modules in memory. A table maps every LoRA name that the client accepts to the
original module's path; a file's name that is in no table is dropped by that client.
"""

import re

# Stages of the original UNets that have attention, first to last, and how many stages there are.
STAGES = {"sd1": (4, (0, 1, 2)), "sd2": (4, (0, 1, 2)), "sdxl": (3, (1, 2))}
RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
AROUND = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}


def original_blocks(kind: str) -> dict[str, str]:
    """diffusers' block -> original block, by building both side by side in the original's order."""
    stages, attending = STAGES[kind]
    blocks, count = {}, 1  # input_blocks.0 is conv_in
    for stage in range(stages):
        for layer in range(2):
            blocks[f"down_blocks.{stage}.resnets.{layer}"] = f"input_blocks.{count}.0"
            if stage in attending:
                blocks[f"down_blocks.{stage}.attentions.{layer}"] = f"input_blocks.{count}.1"
            count += 1
        if stage < stages - 1:
            blocks[f"down_blocks.{stage}.downsamplers.0.conv"] = f"input_blocks.{count}.0.op"
            count += 1
    for number, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        blocks[f"mid_block.{name}"] = f"middle_block.{number}"
    count = 0
    for up, stage in enumerate(reversed(range(stages))):
        for layer in range(3):
            inside = ["resnets"] + ["attentions"] * (stage in attending)
            for number, name in enumerate(inside):
                blocks[f"up_blocks.{up}.{name}.{layer}"] = f"output_blocks.{count}.{number}"
            if layer == 2 and stage > 0:
                blocks[f"up_blocks.{up}.upsamplers.0.conv"] = f"output_blocks.{count}.{len(inside)}.conv"
            count += 1
    return blocks | AROUND


def original_unet(kind: str, paths: list[str]) -> dict[str, str]:
    """diffusers' module path (below `unet.`) -> original path."""
    blocks, found = original_blocks(kind), {}
    for path in paths:
        block = next(name for name in blocks if path == name or path.startswith(f"{name}."))
        rest = path[len(block) :].lstrip(".")
        found[path] = ".".join(filter(None, (blocks[block], RESNET.get(rest, rest))))
    return found


def text_layers(paths: list[str]) -> list[tuple[str, str]]:
    """(layer number, module below the layer) of CLIP's linear layers."""
    return [re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)", path).groups() for path in paths]


def below(component: str, paths: list[str]) -> list[str]:
    return [path.removeprefix(f"{component}.") for path in paths if path.startswith(f"{component}.")]


def _flat(path: str) -> str:
    return path.replace(".", "_")


def comfyui(kind: str, paths: list[str]) -> dict[str, str]:
    """LoRA name -> module in ComfyUI: the UNet by either naming, CLIP-L and H as te or te1, CLIP-G as te2."""
    table = {}
    for ours, original in original_unet(kind, below("unet", paths)).items():
        table[f"lora_unet_{_flat(original)}"] = table[f"lora_unet_{_flat(ours)}"] = f"diffusion_model.{original}"
    encoders = {"text_encoder": ("clip_h" if kind == "sd2" else "clip_l", ("te", "te1"))}
    encoders["text_encoder_2"] = ("clip_g", ("te2",))
    for component, (clip, prefixes) in encoders.items():
        for layer, module in text_layers(below(component, paths)):
            for prefix in prefixes:
                name = f"lora_{prefix}_text_model_encoder_layers_{layer}_{_flat(module)}"
                table[name] = f"{clip}.transformer.text_model.encoder.layers.{layer}.{module}"
    return table


OPENCLIP = {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}


def a1111(kind: str, paths: list[str]) -> dict[str, str]:
    """LoRA name -> module in A1111: OpenCLIP keeps q, k and v in one module, and is `te` in SD 2 but `te2` in SDXL."""
    table = {}
    for ours, original in original_unet(kind, below("unet", paths)).items():
        table[f"lora_unet_{_flat(original)}"] = f"diffusion_model.{original}"
        if kind != "sdxl":  # its translation of diffusers' names is that of SD 1 and 2
            table[f"lora_unet_{_flat(ours)}"] = f"diffusion_model.{original}"
    clip_l = "transformer.text_model.encoder.layers"
    encoders = {
        "sd1": [("text_encoder", ("te", "te1"), clip_l)],
        "sd2": [("text_encoder", ("te",), "model.transformer.resblocks")],
        "sdxl": [
            ("text_encoder", ("te1",), f"0.{clip_l}"),
            ("text_encoder_2", ("te2",), "1.model.transformer.resblocks"),
        ],
    }
    for component, prefixes, root in encoders[kind]:
        for layer, module in text_layers(below(component, paths)):
            inside = OPENCLIP.get(module, "attn") if root.endswith("resblocks") else module
            for prefix in prefixes:
                table[f"lora_{prefix}_text_model_encoder_layers_{layer}_{_flat(module)}"] = f"{root}.{layer}.{inside}"
    return table


CLIENTS = {"comfyui": comfyui, "a1111": a1111}
# What both read behind a name; they split at the first dot.
TENSORS = {"lora_down.weight", "lora_up.weight", "alpha"}
