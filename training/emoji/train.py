"""Trains the network: `python -m training.emoji.train --data DIR --run DIR --minutes 76`.

Stops after so many minutes of training, over which the learning rate falls; started again with the
same directory it goes on from the last checkpoint. Each process draws a share of the batch on one
thread: where other work takes a core for a while, processes that meet once a step lose less than
threads that meet in every operation.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from headrace_runner.models.emoji.words import Vocabulary
from training.emoji.captions import read_emoji, vocabulary
from training.emoji.data import Data, Words
from training.emoji.network import Network, Shape
from training.emoji.optimizer import Optimizer
from training.emoji.sample import SHEET, sample, save_sheet

HIGHEST_RATE, LOWEST_RATE = 2e-3, 3e-5
WARM_UP_STEPS = 200
EMA_DECAY = 0.999
CHECKPOINT = "checkpoint.pt"
ENDS = ("text.words", "text.grams", "sketch", "first", "last")
"""Embeddings, what is like one, and the first and last layer: not for Muon."""
CLOSEST = 0.3
"""The weight of the loss grows as 1/t² down to this t, and no further."""


@dataclass(frozen=True, slots=True)
class Options:
    data: Path
    run: Path
    minutes: float
    batch: int
    processes: int
    checkpoint_minutes: float
    sheet_minutes: float


class Training:
    """The network, its average and the optimizer, with how far they are."""

    def __init__(self, shape: Shape, run: Path) -> None:
        torch.manual_seed(0)
        self.network = Network(shape).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.network.named_parameters():
            inner = parameter.ndim >= 2 and not name.startswith(ENDS)
            (matrices if inner else others).append(parameter)
        self.optimizer = Optimizer(matrices, others)
        self.step = 0
        self.seconds = 0.0
        self._file = run / CHECKPOINT

    def save(self) -> None:
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self._file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._file)

    def resume(self) -> bool:
        if not self._file.exists():
            return False
        state: dict[str, Any] = torch.load(self._file, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    def learn(self, images: Tensor, told: Words, rate: float, seconds: float) -> float:
        """One step of all processes, this one `seconds` into its training; returns its loss."""
        t = draw_times(len(images))
        weights = t.clamp(min=CLOSEST) ** -2
        wide = t[:, None, None, None]
        z = ((1 - wide) * images + wide * torch.randn_like(images)).contiguous(
            memory_format=torch.channels_last
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            clean = self.network(z, t, *told.arguments())
        errors = (clean.float() - images).square().mean(dim=(1, 2, 3))
        loss = (weights * errors).mean()
        loss.backward()
        mean, self.seconds = self.optimizer.step(
            rate, torch.tensor([loss.item(), seconds])
        ).tolist()
        self.step += 1
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean_of, now in zip(
                self.average.parameters(), self.network.parameters(), strict=True
            ):
                mean_of.lerp_(now, 1 - decay)
        return float(mean)


def load_average(network: Network, run: Path) -> None:
    """Gives the network the averaged weights of the run's last checkpoint."""
    state: dict[str, Any] = torch.load(run / CHECKPOINT, weights_only=True)
    network.load_state_dict(state["average"])


def draw_times(count: int) -> Tensor:
    """Times of 0 to 1: half of them even, half crowded at 1, where the words alone decide what is
    to be seen. (Of a logit-normal distribution too few come near 1, where all drawing begins.)"""
    even = torch.rand(count)
    return torch.where(torch.rand(count) < 0.5, even, 1 - even.square())


def rate_at(progress: float, step: int) -> float:
    """The learning rate: a warm-up, then a cosine over the budget of time."""
    falling = LOWEST_RATE + (HIGHEST_RATE - LOWEST_RATE) * (1 + math.cos(math.pi * progress)) / 2
    return falling * min(1.0, (step + 1) / WARM_UP_STEPS)


class Log:
    """Writes the mean loss of every 50 steps as a line of JSON."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._losses: list[float] = []

    def add(self, training: Training, loss: float, rate: float) -> None:
        self._losses.append(loss)
        if training.step % 50:
            return
        line = {
            "step": training.step,
            "seconds": round(training.seconds, 1),
            "loss": round(sum(self._losses) / len(self._losses), 5),
            "rate": rate,
        }
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._losses.clear()


def train(rank: int, options: Options) -> None:
    """What one process does. The first keeps the checkpoints, the log and the sheets."""
    torch.set_num_threads(1)
    meeting = (options.run / "meeting").resolve().as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.processes)
    emoji = read_emoji(options.data)
    listed = vocabulary(emoji)
    shape = Shape(words=len(listed))
    known = Vocabulary({word: i + 1 for i, word in enumerate(listed)}, shape.buckets)
    data = Data(emoji, options.data / "emoji-datasource-google" / "img" / "google" / "64", known)
    training = Training(shape, options.run)
    training.resume()
    rng = random.Random(1000 * training.step + rank)
    torch.manual_seed(1000 * training.step + rank)
    log = Log(options.run / "log.jsonl")
    budget = options.minutes * 60
    saved = sheet = training.seconds
    began = time.monotonic() - training.seconds
    while training.seconds < budget:
        images, told = data.batch(options.batch // options.processes, rng)
        rate = rate_at(training.seconds / budget, training.step)
        loss = training.learn(images, told, rate, time.monotonic() - began)
        if rank > 0:
            continue
        log.add(training, loss, rate)
        if training.seconds - saved >= options.checkpoint_minutes * 60:
            training.save()
            saved = training.seconds
        if training.seconds - sheet >= options.sheet_minutes * 60:
            drawn = sample(training.average, SHEET, known)
            save_sheet(drawn, options.run / f"sheet-{training.step:06}.png", 12)
            sheet = training.seconds
    if rank == 0:
        training.save()
        (options.run / "done").touch()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the emoji model.")
    parser.add_argument("--data", type=Path, required=True, help="directory of both npm packages")
    parser.add_argument("--run", type=Path, required=True, help="directory of checkpoint and log")
    parser.add_argument("--minutes", type=float, default=76.0)
    parser.add_argument("--batch", type=int, default=24, help="of all processes together")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--checkpoint-minutes", type=float, default=3.0)
    parser.add_argument("--sheet-minutes", type=float, default=6.0)
    options = Options(**vars(parser.parse_args()))
    options.run.mkdir(parents=True, exist_ok=True)
    # Where the processes meet; one that is left over from a run that died would mislead them.
    (options.run / "meeting").unlink(missing_ok=True)
    spawn(train, args=(options,), nprocs=options.processes)


if __name__ == "__main__":
    main()
