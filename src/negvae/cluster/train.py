"""`negvae train` by several workers of a Ray cluster, with Ray Train.

Ray Train starts the workers, connects them (gloo on CPUs, nccl on GPUs) and, when one is lost, starts as many again as
the cluster can hold. Each worker runs the one training loop on its share of every batch (`negvae.training.workers`), so
DDP's wrapper is not needed: a network's gradients are one vector already.
"""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from negvae.cluster.connect import enter, explained, joined, open_mailbox, surroundings
from negvae.config import RunConfig
from negvae.files import need
from negvae.model import build_vae
from negvae.negatives import NegativeSource, build_source
from negvae.paper.runner import sigterm_interrupts
from negvae.registry import place_in_plugin
from negvae.training.checkpoint import CHECKPOINT_SECONDS, load_checkpoint
from negvae.training.history import read_metrics
from negvae.training.loop import TrainingResult, train
from negvae.training.reporting import OnProgress, ProgressUpdate
from negvae.training.run import TrainingDivergedError
from negvae.training.workers import Peers

FAILURES = 20
"""The number of times that a run may lose workers and be restarted."""


class LostWorkerError(RuntimeError):
    """The error that workers could not add up their sums, because one of them was lost."""


@dataclasses.dataclass(frozen=True)
class Team:
    """A replacement for `negvae.training.loop.train_seeds` that trains on a cluster; `negvae.runs.train.run` takes it.

    Attributes:
        workers: largest number of workers that train together; there are fewer if the cluster cannot hold them.
        address: address of the cluster; see `negvae.cluster.connect.joined`.
        cpus: number of processor cores for each worker.
        log: called with each line that the user should see.

    >>> Team(workers=0)
    Traceback (most recent call last):
    ValueError: workers is 0: it must be at least 1
    """

    workers: int = 2
    address: str = "auto"
    cpus: int = 1
    log: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        """Refuse sizes that make no sense."""
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
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        on_progress: OnProgress | None = None,
        auxiliary: Mapping[str, Tensor] | None = None,
    ) -> list[TrainingResult]:
        """Train one run; other arguments, result and exceptions are those of `train_seeds`.

        Args:
            configs: the one run to train.
            images: inliers, uint8, N x C x H x W, or rows of features, floats, N x D x 1 x 1.
            source: source of negatives, which each worker builds anew as `config.negatives` says; None for the baseline
                VAE.
            directories: folder of the run, which all nodes share.
            resume: whether the folder may hold a checkpoint; the workers continue from it if there is one.
            budget: number of seconds after which to stop with a checkpoint; None for no limit.
            checkpoint_seconds: number of seconds between checkpoints.
            on_progress: called with an update every few steps.
            auxiliary: sets that the source draws on, as its notation names them.

        Returns:
            The trained model with its history, as a list of one.

        Raises:
            ImportError: if Ray is not installed.
            ValueError: if `train_seeds` refuses the arguments, the cluster cannot be joined or it lost workers too
                often.
        """
        (config,), (directory,) = configs, directories
        if self.workers > (least := min(config.batch_size, len(images))):
            raise ValueError(f"{self.workers} workers for batches of {least} images: take fewer workers")
        deadline = None if budget is None else time.time() + budget
        with sigterm_interrupts(), joined(self.address) as ray:
            ending = self._run(
                ray, config, images, auxiliary or {}, directory.absolute(), deadline, checkpoint_seconds, on_progress
            )
        model = build_vae(config, (int(images.shape[1]), int(images.shape[2]), int(images.shape[3])))
        restored = load_checkpoint(directory, model, {})
        if restored is None:
            raise ValueError(f"{directory} has no checkpoint: it must be a folder that all nodes share")
        progress = restored[0]
        taken, of = progress.shift_steps
        progress.finished = progress.epoch >= config.epochs and (model.shifted is None or 0 < of <= taken)
        return [TrainingResult(model.eval(), progress, ending, read_metrics(directory))]

    def _run(
        self, ray: Any, config: RunConfig, images: Tensor, auxiliary: Mapping[str, Tensor], directory: Path,
        deadline: float | None, checkpoint_seconds: float, on_progress: OnProgress | None,
    ) -> str:  # fmt: skip
        """Let Ray Train carry out the job and pass on its messages; return why the job ended."""
        mailbox = open_mailbox(ray)
        job = {
            "config": config.to_dict(), "directory": str(directory), "command": surroundings(),
            "images": ray.put(images.cpu().numpy()),
            "auxiliary": {name: ray.put(others.cpu().numpy()) for name, others in auxiliary.items()},
            "deadline": deadline, "checkpoint_seconds": checkpoint_seconds, "cpus": self.cpus, "mailbox": mailbox,
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
            ending = self._follow(ray, mailbox, thread, on_progress)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        if not ending:
            reason = " ".join(str(failure[0] if failure else "the workers ended without a word").split())[-300:]
            raise ValueError(f"{directory}: training on the cluster failed: {reason}")
        return ending

    def _trainer(self, job: dict[str, Any], place: Path, gpu: bool) -> Any:
        """Return the trainer of Ray Train that runs the job's workers and restarts them after a failure."""
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

    def _follow(self, ray: Any, mailbox: Any, thread: threading.Thread, on_progress: OnProgress | None) -> str:
        """Pass on the workers' messages until they end; return why they ended, or "" if no message said so."""
        ending, sizes = "", list[int]()
        while thread.is_alive() or not ending:
            try:
                alive = thread.is_alive()
                for kind, what in ray.get(mailbox.take.remote()):
                    if kind == "progress" and on_progress is not None:
                        on_progress(what)
                    elif kind == "size":
                        again = " again, from the last checkpoint" if sizes else ""
                        sizes.append(what)
                        self.log(f"training on {what} worker{'s' * (what > 1)}{again}")
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
                ray.get(mailbox.stop.remote(str(signaled) or "SIGINT"))
        return ending


def train_share(job: dict[str, Any]) -> None:
    """Run the training loop on a worker's share of every batch; the first worker reports to the mailbox."""
    import ray
    import ray.train.torch

    context, mailbox = ray.train.get_context(), job["mailbox"]
    rank, size = context.get_world_rank(), context.get_world_size()
    stop = ""

    def tell(kind: str, what: Any) -> None:
        nonlocal stop
        stop = ray.get(mailbox.tell.remote((kind, what))) or stop

    def on_progress(update: ProgressUpdate) -> None:
        if rank == 0:
            tell("progress", update)

    torch.set_num_threads(job["cpus"])
    try:
        enter(job["command"], needed=[job["directory"]])
        config = RunConfig.from_dict(job["config"])
        config = dataclasses.replace(config, device=str(ray.train.torch.get_device()))
        with warnings.catch_warnings():
            # The arrays lie read-only in memory that all workers of the node share; nothing writes to them.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            images = torch.from_numpy(ray.get(job["images"]))
            auxiliary = {
                name: torch.from_numpy(ray.get(array)).to(config.device) for name, array in job["auxiliary"].items()
            }
        source = build_source(config.negatives, auxiliary.__getitem__)
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
            peers=Peers(rank, size, _add),
        )
    except TrainingDivergedError as error:
        tell("diverged", str(error))
    except (LostWorkerError, ray.exceptions.RayError):
        raise  # Ray Train starts as many workers again as there is room for
    except Exception as error:
        if not isinstance(error, ValueError | FileNotFoundError | TypeError) and not place_in_plugin(error):
            raise
        tell("refused", explained(error))
    else:
        if rank == 0:
            tell("ended", result.stopped_by)


def _add(tensor: Tensor) -> None:
    """Add a tensor up over all workers, in place."""
    import ray.train.torch

    moved = tensor.to(ray.train.torch.get_device())
    try:
        torch.distributed.all_reduce(moved)
    except RuntimeError as error:  # raised through the code of any network, a plugin's too
        raise LostWorkerError(str(error)) from error
    if moved is not tensor:
        tensor.copy_(moved)
