"""Original checkpoints in: CompVis latent-diffusion files become diffusers folders (arXiv 2112.10752)."""

from slimdpm.originals.importing import Parts, convert_checkpoint, import_checkpoint

__all__ = ["Parts", "convert_checkpoint", "import_checkpoint"]
