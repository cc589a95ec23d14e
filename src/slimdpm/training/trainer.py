"""The loop. ``slimdpm slim`` distils a teacher with it, ``slimdpm train`` trains on the images alone.

Each step seeds its own randomness (`slimdpm.training.lessons`), so a run that was stopped and resumed takes the very
steps that it would have taken, and there is no random state to save. Timesteps and noise are drawn for a whole batch
and shared out, so they do not depend on the number of processes or on accumulation either.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from slimdpm.data.dataset import Images
from slimdpm.method.distiller import Distiller, TappedStudent
from slimdpm.method.inherit import inherited_weights
from slimdpm.method.losses import PARTS
from slimdpm.method.networks import build
from slimdpm.metrics.denoising import described_error, times_the_teachers
from slimdpm.run_folder import RunFolder
from slimdpm.system.amounts import duration
from slimdpm.system.devices import cuda_devices, synchronize
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.progress import Display, loss_line
from slimdpm.system.stop_signals import Stopped, stop_signals
from slimdpm.training.checkpoint import Trainable, checkpoints, ema_weights, load_checkpoint, save_checkpoint
from slimdpm.training.job import Job
from slimdpm.training.lessons import Lessons

_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}  # diffusers' names

_FORECAST = (4, 20)  # the steps between which is measured how long a run takes

Weights = dict[str, Tensor]
Measure = Callable[[Weights], dict[str, float]]


class Trainer:
    """One run's training, from where its folder left it to the recipe's last step.

    Args:
        job: what is trained, and how.
        images: of the run; those that its recipe holds out are kept back from training.
        run: the run's folder, open.
        accelerator: from `slimdpm.training.accelerator.make_accelerator`.
        display: where progress is shown.
        distiller: a subclass of `Distiller`, or what makes one, for other losses than the paper's.
    """

    def __init__(
        self,
        job: Job,
        images: Images,
        run: RunFolder,
        accelerator: Accelerator,
        display: Display | None = None,
        distiller: Callable[..., Distiller] = Distiller,
    ):
        self.job, self.settings, self.shell = job, job.recipe.train, job.shell
        self.run, self.accelerator, self.display = run, accelerator, display or Display()
        data = job.recipe.data
        self.images, self.held_out = images.parted(data.kept_back(len(images)), self.settings.seed)
        self.state = self._new_state()
        self.distiller = self._new_distiller(distiller)
        self.wrapped = accelerator.prepare_model(self.state.student)
        # Collected once: to walk through the modules anew takes milliseconds of each step.
        self._clipped, self._averaged = [*self.wrapped.parameters()], [*self.state.student.unet.parameters()]
        self.optimizer = accelerator.prepare_optimizer(self.state.optimizer)
        self.state.scaler = accelerator.scaler
        self._pending: list[tuple[int, dict[str, Tensor]]] = []  # steps whose numbers are not logged yet
        self._mark = self._forecast_mark = time.monotonic()
        self._ratio = math.inf  # of the held-out errors of student and teacher after this step; the main process's

    def _new_state(self) -> Trainable:
        s = self.settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s.seed)
            unet = build(self.job.plan.config)
            student = TappedStudent(unet, self.job.pairs)
        if self.job.origin is not None:
            unet.load_state_dict(inherited_weights(self.job.origin, unet), strict=False)
        _freeze(unet, s.freeze)
        if s.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        student.to(self.accelerator.device).train()
        if s.compile:
            student.compile()
        trained = [p for p in student.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=s.lr, betas=s.betas, weight_decay=s.weight_decay, fused=True)
        schedule = get_scheduler(
            _SCHEDULES[s.schedule], optimizer, num_warmup_steps=s.warmup_steps, num_training_steps=s.steps
        )
        return Trainable(student, EMAModel(unet.parameters(), decay=s.ema, foreach=True), optimizer, schedule)

    def _new_distiller(self, kind: Callable[..., Distiller]) -> Distiller:
        device, teacher = self.accelerator.device, self.job.teacher
        for module in self.shell.encoders(latents=self.images.latents is not None):
            module.requires_grad_(False).eval().to(device)
        distiller = self.job.distiller(self.state.student, teacher.unet.to(device) if teacher else None, device, kind)
        if self.settings.compile:
            distiller.compile()
        return distiller

    def train(
        self,
        on_checkpoint: Callable[[Weights], None] = lambda weights: None,
        on_sample: Callable[[int, Weights], None] = lambda step, weights: None,
        validate: Measure = lambda weights: {},
    ) -> Weights:
        """Train to the last step, or until the student is good enough.

        Args:
            on_checkpoint: called by the main process with the averaged weights after each checkpoint.
            on_sample: called by the main process with the step and the averaged weights every `sample_every` steps.
            validate: called by the main process with the averaged weights every `validate_every` steps; what it finds
                is logged, see `slimdpm.training.validation.Validation`.

        Returns:
            the averaged weights.

        Raises:
            Stopped: on Ctrl-C or SIGTERM, after a checkpoint.
            SlimdpmError: if the loss is not finite, or a checkpoint cannot be written.
        """
        label = "distilling" if self.distiller.teacher is not None else "training"
        self.resume()
        with (
            torch.random.fork_rng(devices=cuda_devices(self.accelerator.device)),
            stop_signals() as received,
            self.display.task(label, self.settings.steps, done=self.state.step, unit="steps") as task,
        ):
            for count, numbers in enumerate(self.steps(on_checkpoint, on_sample, validate, received), 1):
                task.advance(1, numbers)
                if "steps" not in self.settings.model_fields_set:
                    self._say_how_long(count)
        if self.settings.until is not None:
            self._say_how_good()
        self.accelerator.wait_for_everyone()
        return self.weights()

    def steps(
        self,
        on_checkpoint: Callable[[Weights], None] = lambda weights: None,
        on_sample: Callable[[int, Weights], None] = lambda step, weights: None,
        validate: Measure = lambda weights: {},
        received: Sequence[int] = (),
    ) -> Iterator[str]:
        """`train` a step at a time, for who drives several runs side by side; `resume` comes first.

        Args:
            on_checkpoint, on_sample, validate: see `train`.
            received: the signals that ask to stop, see `stop_signals`.

        Yields:
            after each step its numbers as a line if they were logged, else nothing.
        """
        s = self.settings
        if not self.run.grid(self.state.step).exists():
            self._grid(on_sample)  # the run stopped, or was killed, between checkpoint and grid
        lessons = self._lessons()
        self._mark = time.monotonic()
        enough = self._is_enough()
        while self.state.step < s.steps and not enough:
            self._step(lessons)
            step, numbers = self.state.step, ""
            stop = self._agreed(received[0] if received else 0)
            saves = stop or step == s.steps or step % s.checkpoint_every == 0
            validates = s.validates(step, len(self.held_out))
            if saves or validates or step % s.log_every == 0:
                numbers = self._flush(validate if validates else None)
            enough = validates and self._is_enough()
            if saves or enough:
                self._checkpoint(on_checkpoint)
            if stop:
                raise Stopped(stop, step)
            self._grid(on_sample)
            yield numbers

    def rehearsal(self) -> Iterator[None]:
        """Optimiser steps for a clock: without logs, checkpoints or samples, of a trainer that is thrown away."""
        lessons = self._lessons()
        while True:
            self._step(lessons)
            self._pending.clear()
            synchronize(self.accelerator.device)
            yield

    def _say_how_long(self, count: int) -> None:
        """After this sitting's first steps: what nobody asked for, the default number of steps, takes here."""
        begin, end = _FORECAST
        if count == begin:
            synchronize(self.accelerator.device)
            self._forecast_mark = time.monotonic()
        elif count == end:
            synchronize(self.accelerator.device)
            steps = self.settings.steps
            left = (time.monotonic() - self._forecast_mark) / (end - begin) * (steps - self.state.step)
            self.display.say(
                f"{steps:,} steps, the default, take {duration(left)} more at this speed; --hours 2 takes as many as "
                "fit into two hours, --steps 1000 a thousand"
            )

    def _grid(self, on_sample: Callable[[int, Weights], None]) -> None:
        """Have a grid of samples made, if it is time."""
        s, step = self.settings, self.state.step
        every = max(1, s.steps // 5) if s.sample_every is None else s.sample_every
        if step and every and step % every == 0 and self.accelerator.is_main_process:
            on_sample(step, self.weights())

    def weights(self) -> Weights:
        """The averaged weights of the student, under its own names."""
        return ema_weights(self.state.student.unet, self.state.ema)

    def resume(self) -> None:
        """Take up the newest checkpoint of the run's folder, if there is one.

        Raises:
            SlimdpmError: if it is damaged.
        """
        found = checkpoints(self.run.checkpoints)
        verified = not found or load_checkpoint(found[-1], self.state)
        if self.accelerator.is_main_process:
            self.run.forget_after(self.state.step)
            now = [line for line in self.run.metrics() if line["step"] == self.state.step]
            self._ratio = times_the_teachers(now[-1]) if now else math.inf
            if found:
                self.display.say(f"resuming after step {self.state.step} of {self.settings.steps}")
            if not verified:
                self.display.say(f"{found[-1].name} is of an earlier version and has no digests: taken as it is")

    def _lessons(self) -> Lessons:
        return Lessons(self.job, self.images, self.distiller, self.accelerator, self.state.step)

    def _step(self, lessons: Lessons) -> None:
        """One optimiser step."""
        a = self.accelerator
        sums: dict[str, Tensor] = {}
        for lesson in lessons.of(self.state.step):
            with a.accumulate(self.wrapped):
                with a.autocast():
                    losses = self.distiller.losses(
                        lesson.x0, lesson.noise, lesson.t, lesson.conditions, student=self.wrapped, taught=lesson.taught
                    )
                a.backward(losses["loss"])
                if a.sync_gradients:
                    sums["grad_norm"] = a.clip_grad_norm_(self._clipped, self.settings.clip or math.inf)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in losses.items():
                part = value.detach() / lessons.accumulation
                sums[name] = sums[name] + part if name in sums else part
        self.state.schedule.step()
        self.state.ema.step(self._averaged)
        self.state.step += 1
        self._pending.append((self.state.step, sums))

    def _flush(self, validate: Measure | None = None) -> str:
        """Log the mean of the steps since the last time, and what is measured now. Returns the mean as a line.

        Raises:
            SlimdpmError: if a loss among them is not finite.
        """
        steps = [step for step, _ in self._pending]
        table = {name: torch.stack([v[name].float() for _, v in self._pending]) for name in self._pending[0][1]}
        table = {name: self.accelerator.reduce(column, "mean") for name, column in table.items()}
        self._pending.clear()
        bad = (~torch.isfinite(table["loss"])).nonzero().flatten().tolist()
        if bad:
            raise self._not_finite(steps[bad[0]], {name: column[bad[0]].item() for name, column in table.items()})
        seconds = time.monotonic() - self._mark
        self._mark = time.monotonic()
        self.state.seconds += seconds
        values = {name: column.mean().item() for name, column in table.items()}
        values["lr"] = float(self.state.schedule.get_last_lr()[0])
        values["images_per_second"] = len(steps) * self.settings.batch_size / seconds
        if self.accelerator.is_main_process:
            measured = {} if validate is None else self._validated(validate)
            self.run.log({"step": steps[-1], **values, **measured, "seconds": round(self.state.seconds, 2)})
            self.accelerator.log({**values, **measured}, step=steps[-1])
        return f"{loss_line(values, ('loss', *PARTS))}  {values['images_per_second']:.0f} images/s"

    def _validated(self, validate: Measure) -> dict[str, float]:
        found = validate(self.weights())
        self._ratio = times_the_teachers(found)
        if found:
            self.display.say(f"step {self.state.step:,}: held-out error {described_error(found)}")
        return found

    def _is_enough(self) -> bool:
        """Whether the student has just been found as near to its teacher as was asked for; for all processes."""
        until = self.settings.until
        return until is not None and bool(self._agreed(self._ratio <= until))

    def _say_how_good(self) -> None:
        """At the end of a run with `train.until`, also of one that is started again."""
        s, is_now = self.settings, f"the held-out error is {self._ratio:.3f} times the teacher's"
        assert s.until is not None
        if self._ratio <= s.until:
            self.display.say(
                f"good enough: after step {self.state.step:,} of {s.steps:,} {is_now}, asked for is {s.until:g}"
            )
        elif math.isfinite(self._ratio):
            self.display.say(f"train.until {s.until:g} is not reached: after all {s.steps:,} steps {is_now}")

    def _not_finite(self, step: int, values: Mapping[str, float]) -> SlimdpmError:
        parts = ", ".join(f"{name} {value:g}" for name, value in values.items())
        found = checkpoints(self.run.checkpoints)
        good = f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
        return SlimdpmError(f"the loss is not finite at step {step} ({parts}); {good}. Try a lower train.lr, or bf16")

    def _checkpoint(self, on_checkpoint: Callable[[Weights], None]) -> None:
        if self.accelerator.is_main_process:
            save_checkpoint(self.run.checkpoints, self.state, keep=self.settings.keep)
            on_checkpoint(self.weights())
        self.accelerator.wait_for_everyone()

    def _agreed(self, mine: int) -> int:
        """The largest of what the processes have after the same step, for all: a signal to stop at, or 0 to go on."""
        if self.accelerator.num_processes == 1:
            return mine
        return int(self.accelerator.gather(torch.tensor(mine, device=self.accelerator.device)).max())


def _freeze(network: nn.Module, patterns: Sequence[str]) -> None:
    """Keep the parameters whose names match a pattern out of training.

    Raises:
        SlimdpmError: for a pattern that matches none.
    """
    for pattern in patterns:
        matching = [p for name, p in network.named_parameters() if fnmatchcase(name, pattern)]
        if not matching:
            raise SlimdpmError(f"train.freeze: no parameter of the student matches {pattern!r}")
        for parameter in matching:
            parameter.requires_grad_(False)
