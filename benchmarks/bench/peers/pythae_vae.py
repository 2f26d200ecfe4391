"""pythae's VAE with negvae's `gray` networks: its BaseTrainer, or its forward pass alone."""

from __future__ import annotations

import logging
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor, nn

from .networks import FEATURES, gray_decoder, gray_encoder
from .protocol import Turns, images_for, rate_of, specification


class Encoder(BaseEncoder):
    """The shared layers with pythae's interface."""

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.layers = gray_encoder()
        self.mean = nn.Linear(FEATURES, latent_size)
        self.log_var = nn.Linear(FEATURES, latent_size)

    def forward(self, x: Tensor) -> ModelOutput:
        """Compute the posterior of images."""
        features = self.layers(x)
        return ModelOutput(embedding=self.mean(features), log_covariance=self.log_var(features))


class Decoder(BaseDecoder):
    """The shared layers with pythae's interface; its Bernoulli loss takes probabilities."""

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.layers = gray_decoder(latent_size)

    def forward(self, z: Tensor) -> ModelOutput:
        """Compute the mean images of codes."""
        return ModelOutput(reconstruction=torch.sigmoid(self.layers(z)))


class Rounds(TrainingCallback):
    """A callback that makes each epoch of the trainer one round."""

    def __init__(self, turns: Turns, images: int) -> None:
        super().__init__()
        self.turns, self.images = turns, images

    def on_epoch_end(self, training_config: Any, **_: Any) -> None:
        """End the round."""
        self.turns.take(self.images)


def _vae(latent_size: int) -> VAE:
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=latent_size, reconstruction_loss="bce")
    return VAE(config, encoder=Encoder(latent_size), decoder=Decoder(latent_size))


def _trainer(spec: dict[str, Any], images: Any, epochs: int, callback: TrainingCallback) -> BaseTrainer:
    settings = BaseTrainerConfig(
        output_dir="pythae", num_epochs=epochs, per_device_train_batch_size=spec["batch"],
        learning_rate=spec["learning_rate"], optimizer_cls="RMSprop", no_cuda=spec["device"] == "cpu",
    )  # fmt: skip
    data = BaseDataset(torch.from_numpy(images).float() / 255, torch.zeros(len(images)))
    return BaseTrainer(_vae(spec["latent_size"]), data, training_config=settings, callbacks=[callback])


class Stopwatch(TrainingCallback):
    """A callback that records when each epoch ended."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_epoch_end(self, training_config: Any, **_: Any) -> None:
        """Record the time."""
        self.times.append(time.perf_counter())


def main() -> None:
    """Train for one epoch, or run the forward pass over all images, in each round."""
    spec = specification()
    logging.disable(logging.INFO)
    images = np.load(spec["images"])
    batch, seconds = spec["batch"], spec["seconds"]
    turns = Turns(
        spec["device"], peer=f"pythae {version('pythae')}", torch=str(torch.__version__), precision="float32",
        threads=torch.get_num_threads(),
    )  # fmt: skip
    if spec["work"] == "train":
        watch = Stopwatch()
        few = images_for(images, 0, 0, batch)
        _trainer(spec, few, 2, watch).train()
        images = images_for(images, len(few) / (watch.times[1] - watch.times[0]), seconds, batch)
        _trainer(spec, images, 1_000_000, Rounds(turns, len(images))).train()
        return
    model = _vae(spec["latent_size"]).to(spec["device"]).eval()

    @torch.no_grad()
    def forward(images: Any) -> None:
        for start in range(0, len(images), batch):
            # The images are uint8 in memory for negvae too: the conversion belongs to the work.
            x = torch.from_numpy(images[start : start + batch]).to(spec["device"]).float() / 255
            model({"data": x}).loss.item()

    images = images_for(images, rate_of(forward, images, batch), seconds, batch)

    def work() -> float:
        forward(images)
        return len(images)

    turns.serve(work)


if __name__ == "__main__":
    main()
