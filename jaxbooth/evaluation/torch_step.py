"""PyTorch diffusers' DreamBooth step, timed: what `jaxbooth bench --vs diffusers` compares with.

As diffusers' `train_dreambooth.py` and `train_dreambooth_lora.py` take it: float32 weights under autocast, or for LoRA
a frozen UNet in the compute dtype and float32 factors (PEFT); AdamW; gradients clipped to norm 1; the UNet sees the
rows of the subject and of its class in one call. And as one would hasten it: scaled dot-product attention, channels
last, `torch.compile` on GPUs, latents' moments and text states computed once, which our side has too.
"""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

LEARNING_RATE, MAX_GRAD_NORM, PRIOR_WEIGHT = 5e-6, 1.0, 1.0
ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")  # what diffusers' LoRA script trains


@dataclass(frozen=True)
class Problem:
    """A step and how often it is taken.

    Attributes:
        unet: Its config.json.
        scheduler: Its scheduler_config.json.
        scaling_factor: The VAE's.
        lora_rank: None: the whole UNet trains.
        batch: Rows of the subject, and again as many of its class.
        latents: Shape of a row's latents, channels first.
        states: Shape of a row's text states.
        pooled: Width of SDXL's pooled text.
        dtype: Compute dtype.
        remat: Whether activations are computed again in the backward pass.
        steps: That are timed.
        warmup: Steps before them.
        threads: That the CPU computes with.
    """

    unet: dict[str, Any]
    scheduler: dict[str, Any]
    scaling_factor: float
    lora_rank: int | None
    batch: int
    latents: tuple[int, int, int]
    states: tuple[int, int]
    pooled: int | None
    dtype: str
    remat: bool
    steps: int
    warmup: int
    threads: int


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Times the step on the GPU, if there is one, else on the CPU."""
    problem, on_gpu = Problem(**given), torch.cuda.is_available()
    torch.manual_seed(0)
    if on_gpu:
        torch.set_float32_matmul_precision("high")  # TF32 for float32, as XLA does it
    else:
        torch.set_num_threads(problem.threads)
    take, seconds = make_step(problem, torch.device("cuda" if on_gpu else "cpu")), []
    for _ in range(problem.warmup + problem.steps):
        began = time.perf_counter()
        loss = take()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    timed = seconds[problem.warmup :]
    return {
        "program": "diffusers",
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "seconds": timed,
        "compile_seconds": seconds[0] - sorted(timed)[len(timed) // 2] if on_gpu else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "loss": float(loss),
    }


def make_step(problem: Problem, device: torch.device):
    """Builds `() -> loss`: one whole step on random rows that stay on the device."""
    unet = random_unet(problem, device)
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)
    scheduler = diffusers.DDPMScheduler.from_config(problem.scheduler)
    predict = torch.compile(unet) if device.type == "cuda" else unet
    mean, log_variance, conditions = random_rows(problem, device)
    half = problem.dtype != "float32"
    kind = torch.autocast(device.type, getattr(torch, problem.dtype)) if half else nullcontext()

    def take() -> torch.Tensor:
        drawn = mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * torch.randn_like(mean)
        latents = drawn * problem.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), device=device)
        noisy_latents = scheduler.add_noise(latents, noise, timesteps)
        with kind:
            model_pred = predict(noisy_latents, timesteps, **conditions).sample
        is_velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, timesteps) if is_velocity else noise
        # Rows of the subject come first.
        errors = zip(model_pred.float().chunk(2), target.float().chunk(2), strict=True)
        instance, prior = (torch.nn.functional.mse_loss(ours, wanted) for ours, wanted in errors)
        loss = instance + PRIOR_WEIGHT * prior
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return take


def random_unet(problem: Problem, device: torch.device) -> torch.nn.Module:
    """The UNet with diffusers' initial weights, ready to train."""
    with device:
        unet = diffusers.UNet2DConditionModel.from_config(problem.unet)
    if problem.lora_rank is not None:
        import peft

        unet.requires_grad_(False)
        unet.to(getattr(torch, problem.dtype))
        rank = problem.lora_rank
        unet.add_adapter(
            peft.LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(ATTENTION))
        )
        diffusers.training_utils.cast_training_params(unet, dtype=torch.float32)
    if problem.remat:
        unet.enable_gradient_checkpointing()
    return unet.to(memory_format=torch.channels_last).train()


def random_rows(problem: Problem, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Mean and log-variance of the latents, and what the UNet is told beside them."""
    rows = 2 * problem.batch
    mean, log_variance = (
        torch.randn(rows, *problem.latents, device=device).to(memory_format=torch.channels_last) for _ in range(2)
    )
    conditions = {"encoder_hidden_states": torch.randn(rows, *problem.states, device=device)}
    if problem.pooled is not None:
        time_ids = torch.full((rows, 6), 512.0, device=device)
        conditions["added_cond_kwargs"] = {
            "text_embeds": torch.randn(rows, problem.pooled, device=device),
            "time_ids": time_ids,
        }
    return mean, log_variance, conditions
