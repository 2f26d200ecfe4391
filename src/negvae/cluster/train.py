"""`negvae train` by several workers of a Ray cluster, with Ray Train.

Ray Train starts the workers, connects them (gloo on CPUs, nccl on GPUs) and starts them again, as many as there is
room for, when one is lost. What they do is the one training loop, each on its share of every batch
(`negvae.training.workers`), so DDP's wrapper is not needed: a network's gradients are one vector already.
"""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from negvae.cluster.connect import enter, joined, open_desk, surroundings
from negvae.config import RunConfig
from negvae.files import need
from negvae.model import build_vae
from negvae.negatives import Mixture, NegativeSource, build_source
from negvae.paper.runner import sigterm_interrupts
from negvae.training.checkpoint import load_checkpoint
from negvae.training.history import read_metrics
from negvae.training.loop import TrainingResult, train
from negvae.training.progress import OnProgress, ProgressUpdate
from negvae.training.run import TrainingDivergedError
from negvae.training.workers import Peers

FAILURES = 20
"""So often a run may lose workers."""


@dataclasses.dataclass(frozen=True)
class Team:
    """Trains in place of `negvae.training.loop.train_seeds`; give it to `negvae.runs.train.run` as its `trainer`.

    Attributes:
        workers: the most that train together; fewer where there is no room for them.
        address: see `negvae.cluster.connect.joined`.
        cpus: of each worker.
        say: told what the user should know.
    """

    workers: int = 2
    address: str = "auto"
    cpus: int = 1
    say: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be meant."""
        for name, value in (("workers", self.workers), ("cpus", self.cpus)):
            if value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")

    def __call__(
        self,
        configs: Sequence[RunConfig],
        images: Tensor,
        source: NegativeSource | None,
        *,
        directories: Sequence[Path],
        resume: bool = False,
        budget: float | None = None,
        checkpoint_seconds: float = 60.0,
        on_progress: OnProgress | None = None,
    ) -> list[TrainingResult]:
        """Train one run; the arguments and what is raised are those of `train_seeds`.

        Raises:
            ImportError: Ray is not installed.
            ValueError: also where the cluster cannot be joined or lost workers too often.
        """
        (config,), (directory,) = configs, directories
        if self.workers > (least := min(config.batch_size, len(images))):
            raise ValueError(f"{self.workers} workers for batches of {least} images: take fewer workers")
        deadline = None if budget is None else time.time() + budget
        with sigterm_interrupts(), joined(self.address) as ray:
            ending = self._run(
                ray, config, images, source, directory.absolute(), deadline, checkpoint_seconds, on_progress
            )
        model = build_vae(config, (int(images.shape[1]), int(images.shape[2]), int(images.shape[3])))
        restored = load_checkpoint(directory, model, {})
        if restored is None:
            raise ValueError(f"{directory} has no checkpoint: it must be a folder that all nodes share")
        progress = restored[0]
        progress.finished = progress.epoch >= config.epochs
        return [TrainingResult(model.eval(), progress, ending, read_metrics(directory))]

    def _run(
        self, ray: Any, config: RunConfig, images: Tensor, source: NegativeSource | None, directory: Path,
        deadline: float | None, checkpoint_seconds: float, on_progress: OnProgress | None,
    ) -> str:  # fmt: skip
        """Let Ray Train carry it out and pass on what the workers tell; why it ended."""
        desk = open_desk(ray)
        job = {
            "config": config.to_dict(), "directory": str(directory), "command": surroundings(),
            "images": ray.put(images.cpu().numpy()), "others": [ray.put(o.cpu().numpy()) for o in _auxiliary(source)],
            "deadline": deadline, "checkpoint_seconds": checkpoint_seconds, "cpus": self.cpus, "desk": desk,
        }  # fmt: skip
        place = directory / ".ray"
        trainer = self._trainer(job, place, config.device.startswith("cuda"))
        failure: list[BaseException] = []

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=fit, name="ray-train", daemon=True)
        thread.start()
        try:
            ending = self._follow(ray, desk, thread, on_progress)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        if not ending:
            reason = " ".join(str(failure[0] if failure else "the workers ended without a word").split())[-300:]
            raise ValueError(f"{directory}: training on the cluster failed: {reason}")
        return ending

    def _trainer(self, job: dict[str, Any], place: Path, gpu: bool) -> Any:
        """What lets Ray's workers carry out the job, and starts them again where one fails."""
        ray_train, ray_torch = need("ray.train", "ray"), need("ray.train.torch", "ray")
        return ray_torch.TorchTrainer(
            train_share,
            train_loop_config=job,
            torch_config=ray_torch.TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ray_train.ScalingConfig(
                num_workers=(1, self.workers) if self.workers > 1 else 1,
                use_gpu=gpu,
                resources_per_worker={"CPU": self.cpus, **({"GPU": 1} if gpu else {})},
            ),
            run_config=ray_train.RunConfig(
                name="train", storage_path=str(place), failure_config=ray_train.FailureConfig(max_failures=FAILURES)
            ),
        )

    def _follow(self, ray: Any, desk: Any, thread: threading.Thread, on_progress: OnProgress | None) -> str:
        """Pass on what the workers tell until they end; why they ended, or nothing where they did not tell."""
        ending, sizes = "", list[int]()
        while thread.is_alive() or not ending:
            try:
                alive = thread.is_alive()
                for kind, what in ray.get(desk.take.remote()):
                    if kind == "progress" and on_progress is not None:
                        on_progress(what)
                    elif kind == "size":
                        again = " again, from the last checkpoint" if sizes else ""
                        sizes.append(what)
                        self.say(f"training on {what} worker{'s' * (what > 1)}{again}")
                    elif kind == "refused":
                        raise ValueError(what)
                    elif kind == "diverged":
                        raise TrainingDivergedError(what)
                    elif kind == "ended":
                        ending = what
                if not alive:
                    break
                thread.join(0.3)
            except KeyboardInterrupt as signaled:  # calmly: the workers write a checkpoint first
                ray.get(desk.stop.remote(str(signaled) or "SIGINT"))
        return ending


def _auxiliary(source: NegativeSource | None) -> list[Tensor]:
    """The images of the data sets that a source draws on, each once, in the order in which they are named."""
    if isinstance(source, Mixture):
        found = [images for part in source.sources for images in _auxiliary(part)]
        return list({id(images): images for images in found}.values())
    images = getattr(source, "images", None)
    return [images] if isinstance(images, Tensor) else []


def train_share(job: dict[str, Any]) -> None:
    """What each worker does: the training loop on its share of every batch; the first one speaks with the desk."""
    import ray
    import ray.train.torch

    context, desk = ray.train.get_context(), job["desk"]
    rank, size = context.get_world_rank(), context.get_world_size()
    stop = ""

    def tell(kind: str, what: Any) -> None:
        nonlocal stop
        stop = ray.get(desk.tell.remote((kind, what))) or stop

    def on_progress(update: ProgressUpdate) -> None:
        if rank == 0:
            tell("progress", update)

    def add(tensor: Tensor) -> None:
        device = ray.train.torch.get_device()
        moved = tensor.to(device)
        torch.distributed.all_reduce(moved)
        if moved is not tensor:
            tensor.copy_(moved)

    torch.set_num_threads(job["cpus"])
    try:
        enter(job["command"], needed=[job["directory"]])
        config = RunConfig.from_dict(job["config"])
        config = dataclasses.replace(config, device=str(ray.train.torch.get_device()))
        with warnings.catch_warnings():
            # The arrays lie read-only in memory that all workers of the node share; nothing writes to them.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            images = torch.from_numpy(ray.get(job["images"]))
            others = iter([torch.from_numpy(array).to(config.device) for array in ray.get(job["others"])])
        source = build_source(config.negatives, lambda name: next(others))
        if rank == 0:
            tell("size", size)
        result = train(
            config,
            images,
            source,
            directory=Path(job["directory"]),
            resume=True,  # where the run begins, there is no checkpoint
            budget=None if job["deadline"] is None else max(job["deadline"] - time.time(), 1e-3),
            checkpoint_seconds=job["checkpoint_seconds"],
            on_progress=on_progress,
            should_stop=lambda: stop,
            peers=Peers(rank, size, add),
        )
    except TrainingDivergedError as error:
        tell("diverged", str(error))
    except (ValueError, FileNotFoundError, TypeError) as error:
        tell("refused", str(error))
    else:
        if rank == 0:
            tell("ended", result.stopped_by)
