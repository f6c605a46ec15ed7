"""Owns what every training loop shares: the budget, the learning rate, the average of weights, resuming."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

SAVE_EVERY_SECONDS = 120
REPORT_EVERY_SECONDS = 20


@dataclass(frozen=True)
class Budget:
    """How long to train: minutes of work or a number of steps, whichever is given."""

    minutes: float | None = None
    steps: int | None = None

    def progress(self, step: int, seconds: float) -> float:
        """How much of the budget is used, from 0 to 1; the learning rate follows it."""
        if self.steps is not None:
            return min(step / self.steps, 1.0)
        assert self.minutes is not None, "a budget has minutes or steps"
        return min(seconds / (60 * self.minutes), 1.0)


@dataclass(frozen=True)
class Environment:
    """Where a stage works, on what, and from which seed."""

    work: Path
    device: torch.device
    seed: int

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def attention(self) -> AbstractContextManager[None]:
        """On a CPU the fused attention's backward pass is slower than plain matrix products at these sizes."""
        return sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()


def learning_rate(peak: float, progress: float, step: int, warm_up: int = 100) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    cosine = 0.5 * (1 + float(np.cos(np.pi * progress)))
    return peak * min(1.0, (step + 1) / warm_up) * (0.01 + 0.99 * cosine)


class Loop:
    """Runs steps until the budget is spent; a killed run goes on from its last save."""

    def __init__(
        self,
        name: str,
        environment: Environment,
        budget: Budget,
        modules: nn.ModuleDict,
        peak: float,
        decay: float = 0.999,
    ) -> None:
        self.name, self.environment, self.budget = name, environment, budget
        self.modules, self.peak, self.decay = modules, peak, decay
        self.parameters = [p for p in modules.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=peak, betas=(0.9, 0.99), weight_decay=0.01)
        self.average = [p.detach().clone() for p in self.parameters]
        self.step, self.seconds = 0, 0.0
        self._path = state_path(environment.work, name)
        if self._path.exists():
            self._load()

    @property
    def progress(self) -> float:
        return self.budget.progress(self.step, self.seconds)

    def run(self, loss_of: Callable[[int], torch.Tensor]) -> None:
        """Train; `loss_of` gives the loss of a step. Afterwards the modules hold the averaged weights."""
        saved = reported = began = time.monotonic()
        before, losses = self.seconds, list[float]()
        while (progress := self.progress) < 1:
            losses.append(self._advance(loss_of, progress))
            now = time.monotonic()
            self.seconds = before + now - began
            if now - reported > REPORT_EVERY_SECONDS:
                self._report(losses)
                reported = now
                losses.clear()
            if now - saved > SAVE_EVERY_SECONDS:
                self.save()
                saved = now
        self.save()
        self.use_average()

    def _advance(self, loss_of: Callable[[int], torch.Tensor], progress: float) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.peak, progress, self.step)
        loss = loss_of(self.step)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.step += 1
        # A short memory at first, so that the random start is soon forgotten.
        weight = 1 - min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], weight)
        return float(loss.detach())

    def _report(self, losses: list[float]) -> None:
        progress = self.progress
        left = self.seconds * (1 - progress) / max(progress, 1e-6) / 60
        loss = sum(losses) / max(len(losses), 1)
        print(
            f"{self.name}: step {self.step}, {progress:.0%}, loss {loss:.4f}, "
            f"{self.step / self.seconds:.2f} steps/s, {left:.1f} minutes left",
            flush=True,
        )

    def use_average(self) -> None:
        with torch.no_grad():
            for parameter, mean in zip(self.parameters, self.average, strict=True):
                parameter.copy_(mean)

    def save(self) -> None:
        """Write the state beside the old one, then swap: a kill in between loses nothing."""
        tensors = {f"modules.{name}": value for name, value in self.modules.state_dict().items()}
        tensors |= {f"average.{index}": value for index, value in enumerate(self.average)}
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": value for name, value in moments.items()}
        partial = self._path.with_suffix(".partial")
        facts = {"step": str(self.step), "seconds": str(self.seconds)}
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial, facts)
        os.replace(partial, self._path)

    def _load(self) -> None:
        tensors = load_file(self._path, device=str(self.environment.device))
        self.modules.load_state_dict(_under("modules.", tensors))
        self.average = [tensors[f"average.{index}"] for index in range(len(self.parameters))]
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in _under("optimiser.", tensors).items():
            index, moment = name.split(".")
            # AdamW counts its steps on the CPU, wherever the parameters are.
            moments.setdefault(int(index), {})[moment] = value.cpu() if moment == "step" else value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": moments})
        with safe_open(self._path, "pt") as file:
            facts = file.metadata()
        self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
        print(f"{self.name}: going on from step {self.step}", flush=True)


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def state_path(folder: Path, name: str) -> Path:
    return folder / f"{name}-state.safetensors"


def averaged_weights(path: Path, modules: nn.ModuleDict) -> nn.ModuleDict:
    """Fill modules with the averaged weights of a saved state, finished or not."""
    tensors = load_file(path)
    modules.load_state_dict(_under("modules.", tensors))
    trained = [p for p in modules.parameters() if p.requires_grad]
    with torch.no_grad():
        for index, parameter in enumerate(trained):
            parameter.copy_(tensors[f"average.{index}"])
    return modules
