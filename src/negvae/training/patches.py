"""Train the posterior of each patch on inliers and on inliers with a defect put in (`negvae.negatives.defects`).

It is the paper's objective turned local. The KL divergence of a patch's posterior to N(0, I), or to the negative prior
N(c 1, I) where the patch is part of a defect, names the class of the patch by its log-odds, and those are trained by
cross-entropy: with the divergences alone as the loss, as in the paper, the encoder stays at the mean of both priors for
thousands of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from negvae.device import autocast, own_state, resolve_device, resolve_precision
from negvae.fast.memory import keep_freed_memory
from negvae.model.initialization import give_storage, initialize
from negvae.model.patches import PatchEncoder, patch_stride
from negvae.negatives.defects import defects
from negvae.training.checkpoint import (
    CHECKPOINT_SECONDS,
    Progress,
    check_mark,
    digest,
    load_checkpoint,
    restore_generator,
    save_checkpoint,
)
from negvae.training.halves import HALVES, Halves
from negvae.training.optimizers import adam
from negvae.training.reporting import Clock
from negvae.training.schedule import rise_and_fall
from negvae.training.weights import Weights

STEPS, BATCH, LEARNING_RATE = 4000, 32, 4e-3
LEAST_BATCH = 4
PIXELS = 2 * BATCH * 32 * 32
"""Most pixels of a step on average: larger images make smaller batches, and then fewer steps."""

DIVERGENCE = 0.01
"""Weight of the KL divergences beside the cross-entropy."""

USUAL_AREA, MOST_WEIGHT = 0.08, 4.0
"""Share of an image above which its defect counts by its area, and the most that a patch of a smaller one weighs."""

WARM_UP = 0.1
"""Share of the steps over which the learning rate rises, before it falls like a cosine."""

STEPS_PER_CHECK = 25
"""Steps after which it is looked at whether the loss is still finite, which waits for a GPU."""

CHECKPOINT = "heatmaps-checkpoint.safetensors"


class DivergedError(ValueError):
    """The encoder's losses or weights have become infinite or no numbers."""


class StoppedError(Exception):
    """The encoder's training was stopped before its last step.

    Args:
        reason: reason to stop, as `should_stop` returned it.
        step: number of steps taken.
    """

    def __init__(self, reason: str, step: int) -> None:
        super().__init__(f"stopped at step {step} ({reason})")
        self.reason, self.step = reason, step


@own_state()
def train_patches(
    images: Tensor,
    *,
    seed: int = 0,
    steps: int | None = None,
    batch_size: int | None = None,
    precision: str = "auto",
    device: str = "auto",
    on_step: Callable[[int], None] = lambda step: None,
    should_stop: Callable[[], str] = lambda: "",
    directory: Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> PatchEncoder:
    """Train a patch encoder on inliers alone.

    With a folder, training goes on from the folder's checkpoint, exactly as if it had never stopped.

    Args:
        images: inliers, uint8, N x C x H x W, N >= 2.
        seed: seed of the weights, the batches and the defects.
        steps: number of training steps; that of `plan` if None.
        batch_size: number of inliers in each step, half of them in each of two threads, of which a quarter stay whole
            (with fewer than four in a thread, none does); that of `plan` if None.
        precision: precision of the arithmetic, as in `RunConfig`.
        device: device to train on: "auto", "cpu", "cuda" or "cuda:N".
        on_step: called after each step with the number of steps taken.
        should_stop: called before each step; returns the reason to stop, with a checkpoint, or "" to go on.
        directory: folder for checkpoints, of which the last is removed at the end; None keeps everything in memory.
        checkpoint_seconds: number of seconds between checkpoints.

    Returns:
        The trained encoder, in evaluation mode, on the device.

    Raises:
        ValueError: if there are fewer than two images, they are not uint8 images, the checkpoint is damaged or of a
            training with other images or settings, or the training diverges.
        StoppedError: if `should_stop` asked for it.

    >>> images = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8)
    >>> train_patches(images, steps=2, batch_size=4, device="cpu").log_odds(images.float() / 255).shape
    torch.Size([8, 8, 8])
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or len(images) < 2:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}: expected uint8, N x C x H x W, N >= 2")
    place = resolve_device(device)
    keep_freed_memory()
    planned = zip((steps, batch_size), plan(images.shape[2], images.shape[3]), strict=True)
    steps, batch_size = (usual if given is None else given for given, usual in planned)
    network = build_patch_encoder(images.shape[1], patch_stride(*images.shape[2:]), seed).to(place).train()
    kind = resolve_precision(precision, place)
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    weights = Weights(network, [], dtype, lambda parameters: adam(parameters, LEARNING_RATE, capturable=False))
    data = images.to(place)
    randomness = [torch.Generator(place).manual_seed(seed + 0x5EED + half) for half in range(HALVES)]
    size = max(batch_size // HALVES, 2)

    def loss(copied: nn.Module, half: int) -> Tensor:
        assert isinstance(copied, PatchEncoder)
        rows = torch.randint(len(data), (size,), generator=randomness[half], device=place)
        prepared = data[rows].float() / 255
        whole, broken = prepared[: size // 4], prepared[size // 4 :]
        made = defects(broken, randomness[half])
        inputs = torch.cat([whole, made.images]).contiguous(memory_format=torch.channels_last)
        with autocast(kind, place):
            output = copied(inputs)
        return patch_loss(copied, output, copied.grid(torch.cat([torch.zeros_like(whole[:, :1]), made.masks])))

    mark = {"seed": seed, "steps": steps, "batch size": batch_size, "images": digest(images)}
    checkpoint = _Checkpoint(directory, weights, network, randomness, mark)
    first, since_saved, losses = checkpoint.restore(), Clock(), torch.zeros(())
    with Halves(network, weights, loss, place) as halves:
        for step in range(first, steps):
            reason = should_stop()
            due = bool(reason) or since_saved.seconds() >= checkpoint_seconds
            if due or step % STEPS_PER_CHECK == 0:
                _check_finite(weights, losses, step)
            if due:
                checkpoint.save(step)
                since_saved.lap()
            if reason:
                raise StoppedError(reason, step)
            for group in weights.optimizer.param_groups:
                group["lr"] = LEARNING_RATE * rise_and_fall(step, steps, WARM_UP)
            losses = halves.step()
            on_step(step + 1)
    _check_finite(weights, losses, steps)
    weights.release()
    checkpoint.remove()
    return network.eval()


class _Checkpoint(NamedTuple):
    """The checkpoint of a training, with all that is in it; none, without a folder."""

    directory: Path | None
    weights: Weights
    network: PatchEncoder
    randomness: list[torch.Generator]
    mark: dict[str, Any]

    def save(self, step: int) -> None:
        """Write the checkpoint after a number of steps."""
        if self.directory is None:
            return
        states = {str(half): each.get_state() for half, each in enumerate(self.randomness)}
        optimizers, progress = {"encoder": self.weights.optimizer}, Progress(step=step)
        with self.weights.exact():
            save_checkpoint(self.directory, self.network, optimizers, states, progress, CHECKPOINT, self.mark)

    def restore(self) -> int:
        """Restore the folder's checkpoint, if it has one, and return the number of steps taken."""
        if self.directory is None:
            return 0
        check_mark(self.directory, CHECKPOINT, self.mark)
        with self.weights.exact():
            restored = load_checkpoint(self.directory, self.network, {"encoder": self.weights.optimizer}, CHECKPOINT)
        if restored is None:
            return 0
        progress, states = restored
        for half, each in enumerate(self.randomness):
            restore_generator(each, states, str(half), self.directory / CHECKPOINT)
        return progress.step

    def remove(self) -> None:
        """Remove the checkpoint of a training that is finished."""
        if self.directory is not None:
            (self.directory / CHECKPOINT).unlink(missing_ok=True)


def _check_finite(weights: Weights, losses: Tensor, step: int) -> None:
    """Refuse losses or weights that are infinite or not numbers."""
    if not (losses.isfinite().all() and weights.master.isfinite().all()):
        raise DivergedError(f"training the heat maps diverged within {step} steps")


def plan(height: int, width: int) -> tuple[int, int]:
    """Return the number of steps, and of images in each, for images of a size in pixels.

    Images of up to 32x32 pixels take `STEPS` steps of `BATCH`. Larger ones have more patches each, so there are fewer
    in a batch, and the time of the training grows with the image's side and not with its area. From `LEAST_BATCH` on,
    the number of steps falls instead.

    >>> plan(28, 28) == (STEPS, BATCH), plan(64, 64) == (STEPS, 8), plan(256, 256) == (STEPS // 4, 4)
    (True, True, True)
    """
    pixels = height * width
    batch = max(min(BATCH, BATCH * 32 * 32 * patch_stride(height, width) // pixels), LEAST_BATCH)
    return max(round(STEPS * min(1, PIXELS / (batch * pixels))), 1), batch


def patch_loss(network: PatchEncoder, output: Tensor, shares: Tensor) -> Tensor:
    """Compute the loss of a batch, a mean over its patches.

    It is the cross-entropy of whether a patch is part of a defect, by the log-odds of the negative prior over L c, plus
    `DIVERGENCE` times the KL divergence to the prior that the mask names, over the number L of latent dimensions. The
    patches of defects smaller than `USUAL_AREA` of the image weigh more in the cross-entropy, by the root of the ratio.

    Args:
        network: network that gave the output; its priors name the two divergences.
        output: means and logarithms of variances, N x 2L x h x w.
        shares: share of each patch that belongs to a defect, N x h x w; a half counts as all.

    Returns:
        The loss in nats a patch.
    """
    mean, log_var = (part.reshape(-1, network.latent_size) for part in output.float().movedim(1, -1).chunk(2, -1))
    log_var = log_var.clamp(-8, 8)
    target = (2 * shares).clamp(max=1)
    area = target.mean((1, 2), keepdim=True).clamp_min(1e-6)
    weight = 1 + target * ((USUAL_AREA / area).sqrt().clamp(1, MOST_WEIGHT) - 1)
    odds = network.negative_prior.kl_excess(mean) / (network.latent_size * network.negative_prior.shift)
    entropy = binary_cross_entropy_with_logits(odds, target.flatten(), weight.flatten())
    divergence = torch.lerp(
        network.prior.kl(mean, log_var), network.negative_prior.kl(mean, log_var), target.flatten()
    )  # fmt: skip
    return entropy + DIVERGENCE * divergence.mean() / network.latent_size


def build_patch_encoder(channels: int, stride: int, seed: int) -> PatchEncoder:
    """Build the untrained encoder, with weights drawn from a generator of its own.

    Args:
        channels: C, the number of channels of an image.
        stride: side of the blocks of pixels that its finest level works on.
        seed: seed of the weights.

    Returns:
        The encoder, on the CPU.
    """
    with torch.device("meta"):
        network = PatchEncoder(channels, stride)
    give_storage(network)
    initialize(network, "he", torch.Generator().manual_seed(seed))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
