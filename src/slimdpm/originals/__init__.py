"""Original checkpoints in: files of CompVis latent-diffusion and of Stable Diffusion become diffusers folders."""

from slimdpm.originals.importing import Parts, convert_checkpoint, import_checkpoint, outline
from slimdpm.originals.stable_diffusion import import_single_file

__all__ = ["Parts", "convert_checkpoint", "import_checkpoint", "import_single_file", "outline"]
