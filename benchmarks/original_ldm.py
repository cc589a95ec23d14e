"""The original latent-diffusion code beside what `slimdpm import` makes of its checkpoints.

    pip install einops
    python benchmarks/original_ldm.py CLONE_OF_LATENT_DIFFUSION CLONE_OF_TAMING_TRANSFORMERS

For each of the five configs, at full size: the original `LatentDiffusion` with random weights (running averages and
codebook made different from what they start as) saves a checkpoint as PyTorch Lightning does, with a callback's class
in it, and computes a prediction of the U-Net, an encoding, a decoding and five steps of DDIM. Then the checkpoint is
imported in another process and computes the same, and so does the reference of the tests. Saves the largest absolute
differences. The clones are read (github.com/CompVis, commits a506df5 and 3ba01b2), packages that the original only
names (Lightning, torchvision, ...) are stood in for. Takes 8 minutes on one core, 4 GB of memory and 4 GB of disk.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import subprocess
import sys
import tempfile
import types
from importlib.metadata import version
from pathlib import Path

import torch
import yaml

from slimdpm.originals import import_checkpoint
from slimdpm.originals.reading import read_tensors
from slimdpm.system.files import write_json

CONFIGS = {
    "ffhq": "models/ldm/ffhq256/config.yaml",
    "celebahq": "models/ldm/celeba256/config.yaml",
    "lsun_beds": "models/ldm/lsun_beds256/config.yaml",
    "lsun_churches": "models/ldm/lsun_churches256/config.yaml",
    "cin256-v2": "configs/latent-diffusion/cin256-v2.yaml",
}


class LightningModule(torch.nn.Module):
    device = torch.device("cpu")


class ModelCheckpoint:
    __module__ = "pytorch_lightning.callbacks.model_checkpoint"


def stand_in() -> None:
    """What the original imports and this comparison does not need."""
    contents = {
        "pytorch_lightning": {"LightningModule": LightningModule},
        "pytorch_lightning.utilities": {},
        "pytorch_lightning.utilities.distributed": {"rank_zero_only": lambda function: function},
        "pytorch_lightning.callbacks": {},
        "pytorch_lightning.callbacks.model_checkpoint": {"ModelCheckpoint": ModelCheckpoint},
        "torchvision": {},
        "torchvision.utils": {"make_grid": None},
        "omegaconf": {},
        "omegaconf.listconfig": {"ListConfig": type("ListConfig", (), {})},
        "clip": {},
        "kornia": {},
    }
    for name, content in contents.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        sys.modules[name] = module


def perturb(model) -> None:
    """Nothing stays zero, the averages differ from the weights, and no two codes are close to each other."""
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.02)
    for name, average in model.named_buffers():
        if name.startswith("model_ema.") and average.is_floating_point() and average.ndim:
            average.mul_(1 + 0.2 * torch.randn_like(average)).add_(0.02 * torch.randn_like(average))
    if hasattr(model.first_stage_model, "quantize"):
        model.first_stage_model.quantize.embedding.weight.normal_()
    if model.scale_by_std:
        model.scale_factor.fill_(0.22765)


@torch.no_grad()
def run_original(config: Path, folder: Path) -> None:
    """Save a checkpoint and what the original computes with it."""
    stand_in()
    from ldm.models.diffusion.ddim import DDIMSampler
    from ldm.util import instantiate_from_config

    params = yaml.safe_load(config.read_text())["model"]["params"]
    with contextlib.redirect_stdout(io.StringIO()):
        model = instantiate_from_config(yaml.safe_load(config.read_text())["model"]).eval()
    perturb(model)
    callbacks = {ModelCheckpoint: {"best_model_score": torch.tensor(0.1)}}
    torch.save({"state_dict": model.state_dict(), "callbacks": callbacks}, folder / "model.ckpt")
    if model.use_ema:
        model.model_ema.copy_to(model.model)
    shape = (params["channels"], params["image_size"], params["image_size"])
    found = {"x": torch.randn(1, *shape), "t": torch.tensor([371]), "z": torch.randn(1, *shape) / 2}
    found["images"] = torch.rand(1, 3, 256, 256) * 2 - 1
    context = None
    if model.cond_stage_model is not None:
        context = found["class"] = model.get_learned_conditioning({"class_label": torch.tensor([417])})
    found["unet"] = model.apply_model(found["x"], found["t"], context)
    encoded = model.first_stage_model.encode(found["images"])
    found["encoder"] = encoded if torch.is_tensor(encoded) else encoded.parameters
    found["decoder"] = model.decode_first_stage(found["z"])
    # The original moves everything to a GPU.
    DDIMSampler.register_buffer = lambda self, name, tensor: setattr(self, name, tensor)
    with contextlib.redirect_stdout(io.StringIO()):
        found["ddim"], _ = DDIMSampler(model).sample(5, 1, shape, context, eta=0.0, x_T=found["x"], verbose=False)
    torch.save(found, folder / "found.pt")


@torch.no_grad()
def compare(config: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Largest absolute differences to the original, of the import and of the tests' reference."""
    found = torch.load(folder / "found.pt")
    parts = import_checkpoint(folder / "model.ckpt", config, folder / "imported")
    outputs = {}
    context = {}
    if parts.class_embedder is not None:
        outputs["class"] = parts.class_embedder(torch.tensor([417]))[:, None]
        context = {"encoder_hidden_states": outputs["class"]}
    outputs["unet"] = parts.unet(found["x"], found["t"], **context).sample
    encoded = parts.autoencoder.encode(found["images"])
    outputs["encoder"] = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.parameters
    scale = parts.autoencoder.config.scaling_factor
    outputs["decoder"] = parts.autoencoder.decode(found["z"] / scale).sample
    parts.scheduler.set_timesteps(5)
    outputs["ddim"] = found["x"]
    for t in parts.scheduler.timesteps:
        noise = parts.unet(outputs["ddim"], t, **context).sample
        outputs["ddim"] = parts.scheduler.step(noise, t, outputs["ddim"]).prev_sample
    ema = parts.ema
    del parts
    theirs = reference_outputs(config, folder, found, scale, ema, **context)
    return {
        "import": {name: difference(output, found[name]) for name, output in outputs.items()},
        "reference": {name: difference(output, found[name]) for name, output in theirs.items()},
        "largest output": {name: float(found[name].abs().max()) for name in outputs},
    }


def reference_outputs(config: Path, folder: Path, found, scale: float, ema: bool, encoder_hidden_states=None):
    """The same from tests/reference_ldm.py."""
    import reference_ldm

    params = yaml.safe_load(config.read_text())["model"]["params"]
    tensors = read_tensors(folder / "model.ckpt")
    with torch.device("meta"):
        unet = reference_ldm.UNetModel(params["unet_config"]["params"])
        first = reference_ldm.FirstStage(params["first_stage_config"]["params"])

    def name_of(name):
        return f"model_ema.diffusion_model{name.replace('.', '')}" if ema else f"model.diffusion_model.{name}"

    unet.load_state_dict({n: tensors[name_of(n)] for n in unet.state_dict()}, assign=True)
    first.load_state_dict({n: tensors[f"first_stage_model.{n}"] for n in first.state_dict()}, assign=True)
    return {
        "unet": unet(found["x"], found["t"], encoder_hidden_states),
        "encoder": first.encode(found["images"]),
        "decoder": first.decode(found["z"] / scale),
    }


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("ldm", type=Path)
    parser.add_argument("taming", type=Path)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/original_ldm.json"))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.child:
        sys.path[:0] = [str(args.ldm), str(args.taming)]
        run_original(Path(args.child[0]), Path(args.child[1]))
        return
    sys.path.insert(0, "tests")
    rows = {}
    for name, file in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            child = ["--child", str(args.ldm / file), folder]
            subprocess.run([sys.executable, __file__, str(args.ldm), str(args.taming), *child], check=True)
            rows[name] = compare(args.ldm / file, Path(folder))
        print(name, rows[name], flush=True)
    versions = {name: version(name) for name in ("torch", "diffusers")}
    write_json(args.output, {"versions": versions, "largest absolute difference to the original": rows})


if __name__ == "__main__":
    main()
