"""Feature networks: TensorFlow's resizing from its formula, Inception's names and shapes, a cat that is seen as one."""

import hashlib
from math import floor

import numpy as np
import pytest
import torch
from skimage import data

from slimdpm.data.images import pixels, square, upright
from slimdpm.metrics import inception
from slimdpm.metrics.extractors import load_extractor
from slimdpm.metrics.inception import InceptionV3, load_inception, resize_like_tensorflow_1
from slimdpm.system.errors import SlimdpmError


@pytest.mark.parametrize("size", [(5, 7), (32, 32), (40, 31)])
def test_resizing_is_tensorflows(size):
    """Pixel i lies at i · in / out of the input, without half-pixel centres (resize_bilinear, align_corners=False)."""
    height, width = size
    image = np.random.default_rng(0).uniform(0, 255, size)
    want = np.empty((29, 29))
    for i in range(29):
        for j in range(29):
            y, x = i * height / 29, j * width / 29
            top, left = floor(y), floor(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            dy, dx = y - top, x - left
            upper = image[top, left] * (1 - dx) + image[top, right] * dx
            lower = image[bottom, left] * (1 - dx) + image[bottom, right] * dx
            want[i, j] = upper * (1 - dy) + lower * dy
    found = resize_like_tensorflow_1(torch.from_numpy(image).float()[None, None], 29)[0, 0]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-2)


def test_inceptions_layers_have_the_names_and_shapes_of_the_file():
    """Some of the published file's tensors by hand, and how many there are; see benchmarks/inception_graph.py."""
    with torch.device("meta"):
        state = InceptionV3().state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    some = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5d.branch_pool.bn.bias": (64,),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7dbl_2.conv.weight": (128, 128, 7, 1),
        "Mixed_6e.branch7x7_2.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch3x3dbl_3a.conv.weight": (384, 384, 1, 3),
        "fc.weight": (1008, 2048),
    }
    assert some.items() <= shapes.items()
    convolutions = [name for name in shapes if name.endswith("conv.weight")]
    assert len(convolutions) == 94  # Inception-v3 without its auxiliary classifier
    assert len(shapes) == 6 * 94 + 2  # weight, and the five of batch normalisation; the classifier's two


def test_inception_runs_at_any_size_and_shapes_are_the_papers():
    network = InceptionV3().eval()
    sizes = {}
    for name in ("Conv2d_2b_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"):
        getattr(network, name).register_forward_hook(
            lambda m, a, out, n=name: sizes.__setitem__(n, tuple(out.shape[1:]))
        )
    with torch.no_grad():
        features, logits = network(torch.zeros(1, 3, 24, 24))
    assert features.shape == (1, 2048) and logits.shape == (1, 1008)
    assert sizes == {
        "Conv2d_2b_3x3": (64, 147, 147),
        "Mixed_5d": (288, 35, 35),
        "Mixed_6e": (768, 17, 17),
        "Mixed_7c": (2048, 8, 8),
    }


def test_the_weights_file_is_checked_by_its_hash(tmp_path, monkeypatch):
    file = tmp_path / "weights.pth"
    network = InceptionV3()
    torch.save(network.state_dict(), file)
    with pytest.raises(SlimdpmError, match="not the standard Inception file"):
        load_inception(file)
    monkeypatch.setattr(inception, "SHA256_PREFIX", hashlib.sha256(file.read_bytes()).hexdigest()[:8])
    loaded = load_inception(file)
    assert torch.equal(loaded.fc.weight, network.fc.weight) and not loaded.training
    extractor = load_extractor("inception", weights=file)
    assert extractor.distance_name == "FID"
    features, logits = extractor(np.zeros((1, 8, 8, 1), np.uint8))  # grey counts as RGB
    assert features.shape == (1, 2048) and logits.shape == (1, 1008)


def test_without_a_network_the_error_says_which_file_to_get(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/nothing")
    with pytest.raises(SlimdpmError, match=r"cannot be downloaded .*6726825d\.pth .*--inception-weights"):
        load_inception()


def test_efficientnet_sees_a_cat():
    """The whole path, from uint8 to ImageNet's classes: resizing, normalisation, weights."""
    from PIL import Image

    cat = pixels(square(upright(Image.fromarray(data.chelsea()), 3), 224))
    features, logits = load_extractor("efficientnet-lite0")(cat[None])
    assert features.shape == (1, 1280) and 281 <= logits[0].argmax() <= 285  # the five cats of ImageNet
