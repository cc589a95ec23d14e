"""The runner of an exported folder: needs numpy, pillow and onnxruntime (or openvino), and nothing else.

Its rooms import nothing of slimdpm but each other, and go into the folder as one file, `source`.
"""

from slimdpm.export.runner.command import main
from slimdpm.export.runner.conditions import Words
from slimdpm.export.runner.folder_data import FORMAT, MOST, Network, Wrong, manifest_of, networks
from slimdpm.export.runner.sampling import denoise, random_stream
from slimdpm.export.self_contained import self_contained

__all__ = [
    "FORMAT",
    "MOST",
    "Network",
    "Words",
    "Wrong",
    "denoise",
    "main",
    "manifest_of",
    "networks",
    "random_stream",
    "source",
]

_ABOUT = """Make images with the networks in this folder: python generate.py -n 8 --seed 0 --steps 20 -o images

Needs numpy, pillow and onnxruntime (or openvino, for a folder of its files), and nothing else. The same seed makes the
same images as `slimdpm sample` does with the pipeline that the folder was exported from. Nothing in the folder is run
but this file: the rest is data, and is checked before it is used.
"""


def source() -> str:
    """``generate.py``."""
    return self_contained(_ABOUT, main) + '\n\nif __name__ == "__main__":\n    sys.exit(main())\n'
