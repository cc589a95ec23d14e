"""Slim a diffusion model in a plain PyTorch loop: no recipe, no run folder, no trainer.

    python examples/slim_in_100_lines.py path/to/photos --teacher path/to/pipeline --steps 20000 -o student

The parts are those of `slimdpm slim`; what this leaves out is resuming, several processes, latents and conditioning.
The teacher is a pipeline of pixels (`DDPMPipeline`, `DDIMPipeline`), by default the small one of the demo.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import EMAModel
from PIL import Image, ImageOps
from torch import Tensor, nn

import slimdpm
from slimdpm import Budget, Distiller, TappedStudent, plan_student
from slimdpm.data.images import grid, save_picture, to_model_range
from slimdpm.method.forward_process import Process
from slimdpm.method.inherit import MIXING, inherited_weights
from slimdpm.method.losses import LossSettings
from slimdpm.method.networks import build


def load_photos(folder: Path, size: int) -> Tensor:
    """Photographs, cut square from the centre: ``(N, 3, H, W)`` in [-1, 1]."""
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    squares = [ImageOps.fit(Image.open(f).convert("RGB"), (size, size), Image.Resampling.LANCZOS) for f in files]
    return to_model_range(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2))


def slim(teacher: DiffusionPipeline, images: Tensor, ratio: float, steps: int, batch: int, lr: float) -> nn.Module:
    """A student's U-Net with averaged weights."""
    # 1. The widest student with `ratio` times fewer MACs, and its first weights: the teacher's most important channels.
    config = {**teacher.unet.config, "_class_name": type(teacher.unet).__name__}
    plan = plan_student(config, Budget(ratio=ratio), kind="spectral", overrides=MIXING)
    unet = build(plan.config)
    unet.load_state_dict(inherited_weights(teacher.unet, unet), strict=False)
    print(f"{plan.cost.params / 1e6:.2f} M parameters, {plan.cost.macs / 1e6:.1f} M MACs: {plan.ratio:.1f} times fewer")

    # 2. The losses: L_DDPM with min-SNR weighting, and the teacher's output in space and by frequencies.
    student = TappedStudent(unet)  # with feature pairs it holds their 1x1 aligners, too
    process = Process.of_scheduler(teacher.scheduler)
    settings = LossSettings(lambda_spatial=2.0, lambda_freq=2.0, alpha=-1.0, snr_gamma=5.0)
    distiller = Distiller(student, process, teacher=teacher.unet, settings=settings)

    # 3. The loop.
    average = EMAModel(unet.parameters(), decay=0.9999, use_ema_warmup=True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / min(500, max(1, steps // 10)))
        x0 = images[torch.randint(len(images), (batch,))]  # (B, 3, H, W)
        noise, t = torch.randn_like(x0), torch.randint(len(process), (batch,))
        losses = distiller.losses(x0, noise, t)
        optimizer.zero_grad()
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        average.step(unet.parameters())
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: " + ", ".join(f"{name} {value.item():.4f}" for name, value in losses.items()))
    average.copy_to(unet.parameters())
    return unet.eval()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--teacher", default="demo:teacher")
    parser.add_argument("--ratio", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("-o", "--output", type=Path, default=Path("student"))
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    pipeline = slimdpm.load_pipeline(options.teacher)
    images = load_photos(options.photos, pipeline.unet.config.sample_size)
    unet = slim(pipeline, images, options.ratio, options.steps, options.batch, options.lr)

    # 4. The student is the teacher's pipeline around another U-Net: a folder that plain diffusers loads.
    pipeline.register_modules(unet=unet)
    pipeline.save_pretrained(options.output)
    save_picture(options.output / "samples.png", grid(slimdpm.sample_images(pipeline, 16, steps=25), 8, zoom=2))


if __name__ == "__main__":
    main()
