"""What plain diffusers makes of saved students: run by itself it cannot import slimdpm.

python tests/plain_diffusers.py FOLDER OUTPUT.npz    # of plain students, see test_plain.py for a quicker way
python tests/plain_diffusers.py FOLDER OUTPUT.npz --trust    # of folders that bring their code, see test_other_tools.py
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

CALLS: dict[str, dict[str, Any]] = {  # of each student by the name of its folder
    "pixels": {"batch_size": 2},
    "latents": {"batch_size": 2},
    "text": {"prompt": ["a", "b"], "guidance_scale": 2.0},
}
WITH_CODE = CALLS | {name: {"class_labels": [0, 2], "guidance_scale": 2.0} for name in ("class", "token")}
COMMON = {"num_inference_steps": 2, "output_type": "np"}


def images(pipeline: Any, **call: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(**call, **COMMON, generator=torch.Generator().manual_seed(5)).images


def samples(root: Path, load: Callable[[Path], Any], calls: dict[str, Any] = CALLS) -> dict[str, np.ndarray]:
    """Images of the students in a folder."""
    return {name: images(load(root / name), **call) for name, call in calls.items()}


def tools(root: Path) -> dict[str, np.ndarray]:
    """Images of the pipelines to which a text student lends its parts, and outputs in other precisions."""
    import diffusers
    from diffusers import DDIMPipeline, DDPMPipeline, StableDiffusionPipeline, UNet2DModel

    text = StableDiffusionPipeline.from_pretrained(root / "text")
    given = {"prompt": "a", "image": torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16), "strength": 1.0}
    mask = (torch.arange(16 * 16).reshape(1, 1, 16, 16) % 16 < 8).float()
    made = {}
    for name, more in (("Img2Img", {}), ("Inpaint", {"mask_image": mask, "height": 16, "width": 16})):
        other = getattr(diffusers, f"StableDiffusion{name}Pipeline").from_pipe(text)
        assert other.unet is text.unet
        made[name] = images(other, **given, **more)
    for dtype in (torch.float16, torch.bfloat16):
        unet = DDPMPipeline.from_pretrained(root / "pixels", torch_dtype=dtype).unet
        assert unet.dtype is dtype
        made[str(dtype)] = unet(torch.ones(1, 3, 16, 16, dtype=dtype), 7).sample.float().detach().numpy()
    exact = DDIMPipeline.from_pretrained(root / "pixels").unet
    made["torch.float32"] = exact(torch.ones(1, 3, 16, 16), 7).sample.detach().numpy()
    made["class"] = UNet2DModel.from_pretrained(root / "class", subfolder="unet").conv_in.weight.detach().numpy()
    return made


class Blocked:
    """Nothing of slimdpm can be imported."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.startswith("slimdpm"):
            raise ModuleNotFoundError(f"{name} is not to be had here")


def main(folder: Path, output: Path, *, trust: bool = False) -> None:
    """Write what is made of a folder's students."""
    sys.meta_path.insert(0, Blocked())
    torch.set_num_threads(1)
    from diffusers import DiffusionPipeline

    if trust:
        trusting = partial(DiffusionPipeline.from_pretrained, trust_remote_code=True)
        made = samples(folder, trusting, WITH_CODE)
    else:
        made = samples(folder, DiffusionPipeline.from_pretrained) | tools(folder)
    np.savez(output, **made)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), trust=sys.argv[3:] == ["--trust"])
