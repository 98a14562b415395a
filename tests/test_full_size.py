"""Stable Diffusion 1.5 at its real size with random weights: trains, exports, reopens, within 20 GiB.

Prints the figures for docs/benchmarks.md: `pytest -m slow -s tests/test_full_size.py`.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxbooth.bench.case import Case, Figure
from jaxbooth.bench.turns import in_own_process

ROOT = Path(__file__).parents[1]
SIDE, STEPS = 256, 4
LIMIT_BYTES = 20 * 2**30

pytestmark = pytest.mark.slow


def write_sd15(folder: Path) -> None:
    """A Stable Diffusion 1.5 folder with random fp16 weights and CLIP's tokenizer."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=768,
    )  # fmt: skip
    blocks = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
    pipeline = StableDiffusionPipeline(
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **blocks
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer.from_pretrained(ROOT / "jaxbooth/pocket/base/tokenizer"),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)


def torch_step(folder: Path) -> Figure:
    """PyTorch diffusers' training step on as many rows of the same size, in as many threads."""
    case = Case(
        base=str(folder), method="dreambooth", batch=1, resolution=SIDE,
        dtype="float32", remat="none", steps=STEPS - 1, warmup=1,
    )  # fmt: skip
    return in_own_process(case, "diffusers")


def test_sd15_trains_exports_and_reopens_within_20_gib(tmp_path):
    base, run = tmp_path / "sd15", tmp_path / "run"
    # In a process of its own, so that its memory is given back.
    subprocess.run([sys.executable, __file__, "write", str(base)], check=True)
    rng = np.random.default_rng(0)
    for kind in ("photos", "class"):
        (tmp_path / kind).mkdir()
        for index in range(3):
            Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(tmp_path / kind / f"{index}.png")
    command = [sys.executable, "-m", "jaxbooth", "train", str(ROOT / "configs/dreambooth/sd15.yaml"),
        f"base.path={base}", "base.dtype=float32", f"subjects.0.images={tmp_path / 'photos'}", f"run_dir={run}",
        f"prior.images={tmp_path / 'class'}", "prior.num_images=3", f"data.resolution={SIDE}", "train.batch_size=1",
        f"train.steps={STEPS}", "train.log_every_steps=1", "sample.prompts=[]", "sample.class_prompts=[]"]  # fmt: skip
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    subprocess.run(command, check=True, env=environment)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ours = float(np.median([line["time/step_s"] for line in lines[1:]]))
    reference = torch_step(base)
    assert reference.problem is None
    theirs = float(np.median(reference.seconds))
    print(
        f"\nSD 1.5, {SIDE} px, 1+1 rows, fp32: jaxbooth {ours:.2f} s, PyTorch diffusers {theirs:.2f} s a step "
        f"(ratio {theirs / ours:.2f}), compile and first step {lines[0]['time/step_s']:.0f} s, "
        f"peak {peak / 2**30:.1f} GiB"
    )
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert peak < LIMIT_BYTES
    reopened = subprocess.check_output([sys.executable, __file__, "open", str(run / "pipeline")]).splitlines()[-1]
    assert int(reopened) == 859_520_964  # SD 1.5's UNet


if __name__ == "__main__":
    verb, path = sys.argv[1], Path(sys.argv[2])
    if verb == "write":
        write_sd15(path)
    else:
        from diffusers import StableDiffusionPipeline

        opened = StableDiffusionPipeline.from_pretrained(path)
        print(sum(parameter.numel() for parameter in opened.unet.parameters()))
