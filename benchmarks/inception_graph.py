"""Compare our Inception-v3 with torch-fidelity's, layer names and outputs, on shared random weights.

    python benchmarks/inception_graph.py TORCH_FIDELITY --output benchmarks/results

TORCH_FIDELITY is a checkout of github.com/toshas/torch-fidelity; only its network's files are imported, without
torchvision. No pretrained weights are needed: the same numbers go into both graphs. Saves inception_graph.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import types
from pathlib import Path

import torch

from slimdpm.metrics.inception import InceptionV3
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts

SIZES = (32, 64, 256, 299, 400)


def reference_network(checkout: Path, weights: Path) -> torch.nn.Module:
    """torch-fidelity's extractor, without running the package's own __init__ (which wants torchvision)."""
    package = types.ModuleType("torch_fidelity")
    package.__path__ = [str(checkout / "torch_fidelity")]
    sys.modules["torch_fidelity"] = package
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.manual_seed(0)
    ours = InceptionV3().eval()
    for module in ours.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "random.pth"
        torch.save(ours.state_dict(), weights)
        theirs = reference_network(options.checkout, weights)
    names = {n: tuple(t.shape) for n, t in ours.state_dict().items()}
    result = {
        "same_names_and_shapes": names == {n: tuple(t.shape) for n, t in theirs.state_dict().items()},
        "largest_relative_difference": {},
        "hardware": machine_facts(),
    }
    for size in SIZES:
        images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
        with torch.inference_mode():
            pairs = zip(ours(images), theirs(images), strict=True)
        differences = [((a - b).abs().max() / b.abs().max()).item() for a, b in pairs]
        result["largest_relative_difference"][f"{size}px"] = dict(zip(("features", "logits"), differences, strict=True))
        print(f"{size:4} px: features {differences[0]:.1e}, logits {differences[1]:.1e}")
    print("layer names and shapes are", "the same" if result["same_names_and_shapes"] else "DIFFERENT")
    write_json(options.output / "inception_graph.json", result)


if __name__ == "__main__":
    main()
