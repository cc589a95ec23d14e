"""Compiled sampling, without a C++ compiler: what counts is how many graphs there are and what they give."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import embedded_class_pipeline
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from slimdpm import Request, SlimdpmError, sample_images
from slimdpm.pipelines.compiled import Compiled
from slimdpm.system.hashing import fingerprint


@pytest.mark.slow
def test_one_graph_serves_all_steps_batches_and_guidance():
    pipeline, counter, said = embedded_class_pipeline(), CompileCounter(), []
    before = [fingerprint(pipeline.unet), fingerprint(pipeline.vqvae)]
    torch._dynamo.reset()
    counters.clear()
    compiler = partial(Compiled, say=said.append, backend=counter)
    for guidance, interval in ((3.0, None), (1.0, None), (3.0, (0.3, 3.0))):
        request = Request((2, 0, 1), guidance=guidance, guidance_interval=interval)
        options = {"steps": 3, "batch_size": 3, "request": request}
        ours = sample_images(pipeline, 4, compiler=compiler, **options)  # 3, and 1 that is left over
        theirs = sample_images(pipeline, 4, **options)
        assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert counter.frame_count == 2  # the network and the decoder
    assert not counters["graph_break"]
    assert [line.split(" compiled in ")[0] for line in said[:2]] == ["UNet2DConditionModel", "Shell.decode"]
    assert before == [fingerprint(pipeline.unet), fingerprint(pipeline.vqvae)]


def test_without_a_compiler_the_message_says_which_one():
    def backend(graph, inputs):
        raise RuntimeError("no working C++ compiler found")

    said = []
    with pytest.raises(SlimdpmError, match=r"needs a C\+\+ compiler \(Debian, Ubuntu: apt install g\+\+\).*no working"):
        Compiled(torch.nn.Linear(2, 2), said.append, backend)(torch.ones(3, 2))
    assert not said


def test_a_row_alone_is_called_as_two_only_after_more():
    sizes = []

    def backend(graph, inputs):
        sizes.append(inputs)
        return graph.forward

    torch._dynamo.reset()
    function = Compiled(lambda x: 2 * x, lambda line: None, backend)
    for rows in (3, 1, 2):
        torch.testing.assert_close(function(torch.ones(rows, 2)), torch.full((rows, 2), 2.0))
    assert len(sizes) == 1
