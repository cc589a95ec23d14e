"""The paper's networks at full size: what a dry run says of them, and one real step of distillation of two.

    python benchmarks/full_size.py --output benchmarks/results

The teachers have random weights; their architectures come from the original configs (tests/originals) and, for Stable
Diffusion v1 and DiT-XL/2, from the published ones. For each recipe a dry run on the meta device gives the cost, which
must be the preset's. LDM-4 and LDM-8 then take one step with real weights on the CPU, each in a process of its own,
and the memory that the dry run foresaw stands beside the peak of the process. Saves full_size.json; what it has is not
done again. On one core five minutes, 4 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel, StableDiffusionPipeline

from slimdpm.data.arrays import Arrays
from slimdpm.method.cost import measure
from slimdpm.method.networks import build
from slimdpm.method.presets import PRESETS
from slimdpm.originals import outline
from slimdpm.recipe_file import load_recipe, validate
from slimdpm.run_folder import RunFolder
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts
from slimdpm.training.dry_run import forecast
from slimdpm.training.job import Job
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

ROOT = Path(__file__).parent.parent
ORIGINALS = {"ffhq": "ffhq", "lsun-church": "lsun_churches", "imagenet": "cin256-v2"}  # recipes and their YAMLs
PRESET = {"ffhq": "ldm4", "lsun-church": "ldm8-church", "imagenet": "ldm4-imagenet", "text-to-image": "sd-v1"}
STEPS = {"ffhq": (1, 4), "lsun-church": (1,)}  # batches of the real steps
SD_AUTOENCODER = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
}  # fmt: skip
DIT_XL_2 = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28,
    "sample_size": 32, "num_embeds_ada_norm": 1000,
}  # fmt: skip


def text_to_image(folder: Path) -> StableDiffusionPipeline:
    """Stable Diffusion v1 with CLIP ViT-L/14, on the meta device; the tokenizer knows one letter."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    (folder / "vocab.json").write_text(json.dumps({"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    size = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    with torch.device("meta"):
        unet, autoencoder = build(PRESETS["sd-v1"].config), AutoencoderKL(**SD_AUTOENCODER)
        encoder = CLIPTextModel(CLIPTextConfig(**size))
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    return StableDiffusionPipeline(
        autoencoder, encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )


def transformer() -> DiTPipeline:
    """DiT-XL/2 for 256x256, on the meta device."""
    with torch.device("meta"):
        network, autoencoder = DiTTransformer2DModel(**DIT_XL_2), AutoencoderKL(**SD_AUTOENCODER)
    return DiTPipeline(network, autoencoder, DDIMScheduler(clip_sample=False))


def stand_in(size: int = 256) -> Arrays:
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    return Arrays(images, classes=np.arange(4), texts=np.array(["a"] * 4))


def planned(name: str, folder: Path) -> Job:
    """A recipe's job, its teacher an outline."""
    if name == "dit-xl-2":
        recipe = validate({"data": {"path": "stand-in"}, "student": {"ratio": 12}, "train": {"batch_size": 64}})
        return plan_job(recipe, teacher=transformer(), data=stand_in(), weights=False)
    recipe = load_recipe(ROOT / f"recipes/{name}.yaml")
    if name == "text-to-image":
        return plan_job(recipe, teacher=text_to_image(folder), data=stand_in(512), weights=False)
    teacher = outline(ROOT / f"tests/originals/{ORIGINALS[name]}.yaml").pipeline()
    return plan_job(recipe, teacher=teacher, data=stand_in(), weights=False)


def dry_run(name: str) -> dict:
    """What it says, and whether the costs are the presets'."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        values = forecast(planned(name, Path(folder)), processes=1 if name == "dit-xl-2" else 8)
    found = {key: values[key] for key in ("reference", "student", "memory")}
    found["training"] = {key: values["training"][key] for key in ("micro_batch", "accumulation", "images_seen")}
    found["feature_pairs"] = len(values["feature_pairs"])
    found["cpu_seconds"] = round(time.process_time() - start, 1)
    if name != "dit-xl-2":
        preset = PRESET[name]
        for which, suffix in (("reference", ""), ("student", "-spectral")):
            known = PRESETS[preset + suffix]
            cost = vars(measure(known.config, tokens=known.tokens))
            found[which]["is_preset"] = known.name if cost.items() <= values[which].items() else None
    return found


def real_step(name: str, batch: int) -> dict:
    """One step in float32 with random weights, as `slimdpm slim` takes it, and the memory that it took."""
    parts = outline(ROOT / f"tests/originals/{ORIGINALS[name]}.yaml")
    settings = ("train.steps=1", f"train.batch_size={batch}", "train.precision=fp32", "train.trackers=[]")
    recipe = load_recipe(
        ROOT / f"recipes/{name}.yaml", [*settings, "train.sample_every=0", "samples.count=1", "data.workers=0"]
    )
    foreseen = forecast(plan_job(recipe, teacher=parts.pipeline(), data=stand_in(), weights=False))["memory"]
    empty = peak_rss()
    unet = build({**parts.unet.config, "_class_name": type(parts.unet).__name__})
    autoencoder = type(parts.autoencoder).from_config(parts.autoencoder.config)
    teacher = replace(parts, unet=unet, autoencoder=autoencoder).pipeline()
    with tempfile.TemporaryDirectory() as folder:
        run_job(plan_job(recipe, teacher=teacher, data=stand_in()), folder, report=False)
        logged = RunFolder(folder).metrics()[-1]
    took = peak_rss() - empty
    return {
        "batch": batch,
        "loss": logged["loss"],
        "seconds": logged["seconds"],
        "peak_rss_bytes": peak_rss(),
        "of_it_before_the_networks": empty,
        "took_bytes": took,
        "foreseen_bytes": foreseen["total"],
        "foreseen_over_took": foreseen["total"] / took,
    }


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def apart(*arguments: str) -> dict:
    """This script's own work in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--dry", help="one dry run, printed")
    parser.add_argument("--step", nargs=2, metavar=("RECIPE", "BATCH"), help="one real step, printed")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.dry:
        print(json.dumps(dry_run(options.dry)))
        return
    if options.step:
        print(json.dumps(real_step(options.step[0], int(options.step[1]))))
        return
    file = options.output / "full_size.json"
    result: dict = json.loads(file.read_text()) if file.exists() else {"dry_run": {}, "step": {}}
    result["hardware"] = machine_facts()
    for name, batches in STEPS.items():
        if name in result["step"]:
            continue
        result["step"][name] = [apart("--step", name, str(batch)) for batch in batches]
        for step in result["step"][name]:
            took = f"{step['peak_rss_bytes'] / 1e9:.2f} GB at most, {step['seconds']} s"
            print(f"{name}, batch {step['batch']}: {took}, foreseen {step['foreseen_over_took']:.2f} of it", flush=True)
        write_json(file, result)
    for name in (*PRESET, "dit-xl-2"):
        if name in result["dry_run"]:
            continue
        found = result["dry_run"][name] = apart("--dry", name)
        presets = [found[which].get("is_preset") for which in ("reference", "student")]
        print(f"{name}: {presets}, {found['memory']['total'] / 1e9:.1f} GB, {found['cpu_seconds']} s", flush=True)
        write_json(file, result)


if __name__ == "__main__":
    main()
