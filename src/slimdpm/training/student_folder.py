"""What a run leaves for its user: the student's pipeline folder and pictures of its samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from diffusers import DiffusionPipeline
from torch import Tensor, device, nn

from slimdpm.conditioning import Request
from slimdpm.data.dataset import Images
from slimdpm.data.images import grid, picture, save_picture, stacked, zoom_for
from slimdpm.method.networks import outline
from slimdpm.pipelines.sampling import sample_images
from slimdpm.run_folder import RunFolder
from slimdpm.system.devices import resident
from slimdpm.system.files import atomic_folder, save_tensors
from slimdpm.system.progress import Display
from slimdpm.training.job import Job

_WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' name
GRID = 16  # images in a grid during training
_COLUMNS = 8  # of pictures of samples

_CARD = """---
library_name: diffusers
tags: [slimdpm, {tag}]
---
A slim diffusion pipeline made by slimdpm: the U-Net's weights are an exponential
moving average of its training.

```python
{first}from {module} import {name}

images = {name}.from_pretrained("THIS FOLDER")({call}num_inference_steps=50).images
```
"""


class Results:
    """Writes the results of one run.

    Args:
        job: the run.
        run: its folder.
        place: the device to sample on.
        display: where progress is shown.
    """

    def __init__(self, job: Job, run: RunFolder, place: device, display: Display):
        self.job, self.recipe, self.shell, self.teacher = job, job.recipe, job.shell, job.teacher
        self.run, self.place, self.display = run, place, display
        self.name = "student" if job.teacher is not None else "network"  # in its report
        self.seconds: dict[str, float] = {}  # of a forward pass of each network, once they are measured
        self._unet: nn.Module | None = None
        self._teacher_samples: np.ndarray | None = None

    def network(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """The student with these weights, apart from the one in training."""
        if self._unet is None:
            self._unet = outline(self.job.plan.config).eval().to_empty(device=self.place)  # weights come from outside
        self._unet.load_state_dict(weights)
        return self._unet

    def pipeline(self, weights: Mapping[str, Tensor]) -> DiffusionPipeline:
        """The student's pipeline with these weights."""
        return self.shell.with_unet(self.network(weights), self.recipe.student.prediction)

    def save_student(self, weights: Mapping[str, Tensor]) -> None:
        """Write or update ``student/``; at any moment it can be loaded."""
        if self.run.student.is_dir():
            save_tensors(self.run.student / "unet" / _WEIGHTS, dict(weights))
            return
        with atomic_folder(self.run.student) as temporary:
            self.pipeline(weights).save_pretrained(temporary, max_shard_size="1TB")
            (temporary / "README.md").write_text(_CARD.format(**self.job.card()), encoding="utf-8")

    def save_grid(self, step: int, weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """A picture of samples at this step: each student's under the teacher's from the same noise.

        Returns:
            the samples of each network, uint8 ``(N, H, W, C)``.
        """
        count = min(GRID, self.recipe.samples.count)
        students = self.sample(self.pipeline(weights), count, f"samples at step {step}")
        rows, samples = students, {self.name: students}
        columns = min(_COLUMNS, count)
        if self.teacher is not None:
            if self._teacher_samples is None:
                self._teacher_samples = self.sample_teacher(count, "the teacher's samples")
            rows = stacked(self._teacher_samples, students)
            samples["teacher"] = self._teacher_samples
        save_picture(self.run.grid(step), grid(rows, columns, zoom=zoom_for(students)))
        return samples

    def save_samples(self, weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """The report's samples, a picture for each network. Returns them as `save_grid` does."""
        count = self.recipe.samples.count
        samples = {} if self.teacher is None else {"teacher": self.sample_teacher(count, "sampling the teacher")}
        samples[self.name] = self.sample(self.pipeline(weights), count, f"sampling the {self.name}")
        for name, arrays in samples.items():
            save_picture(self.run.samples / f"{name}.png", grid(arrays, _COLUMNS, zoom=zoom_for(arrays)))
        return samples

    def sample_teacher(self, count: int, label: str, steps: int | None = None) -> np.ndarray:
        """`sample` of the teacher, guided as its answers are."""
        assert self.teacher is not None
        pipeline = self.shell.with_unet(self.teacher.unet.to(self.place))
        guidance = self.recipe.distill.guidance if self.recipe.distill.guides else None
        return self.sample(pipeline, count, label, steps, guidance)

    def keep_images(self, images: Images) -> None:
        """What the samples of a network that sees images are made of: for each prompt an image of that caption."""
        if not self.shell.conditioning.extra or self.run.given.exists():
            return
        captioned = {images.condition(number): number for number in reversed(range(len(images)))}
        with atomic_folder(self.run.given) as temporary:
            for place, prompt in enumerate(self.recipe.samples.prompts):
                array = images.square(captioned.get(prompt, place % len(images)))
                picture(array).save(temporary / f"{place:05d}.png")

    def sample(
        self,
        pipeline: DiffusionPipeline,
        count: int,
        label: str,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> np.ndarray:
        """uint8 ``(count, H, W, C)`` with the recipe's sampler, at the run's size: the teacher's own may be another.

        Args:
            steps, guidance: by default the recipe's.
        """
        s = self.recipe.samples
        with resident(self.shell.frozen, self.place), self.display.task(label, count, unit="images") as task:
            return sample_images(
                pipeline,
                count,
                steps=steps or s.steps,
                scheduler=s.scheduler,
                seed=s.seed,
                batch_size=s.batch_size,
                request=Request(
                    prompts=s.prompts,
                    negative_prompt=s.negative_prompt,
                    guidance=s.guidance if guidance is None else guidance,
                    images=sorted(self.run.given.glob("*.png")),
                    guidance_interval=s.guidance_interval,
                ),
                size=self.shell.image_size,
                progress=task.advance,
            )
