"""The folder of a run behind the service. The only module of the package that imports torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from negvae.data.batches import Batch, InputSpec
from negvae.data.embedding import Encoder
from negvae.runs.artifact import Artifact, load_artifact
from negvae.runs.embed import encoder_of, inputs_of, spec_of
from negvae.runs.pictures import whole_maps
from negvae.scoring.blocks import in_this_thread, latent_means, reconstructions
from negvae.scoring.calibration import Calibration
from negvae.scoring.scorer import Scorer
from negvae.scoring.table import SCORES
from negvae.scoring.tiles import combine
from negvae.service.models import Inputs
from negvae.service.uploads import whole


@dataclass(eq=False)
class RunModel:
    """A calibrated run; see `negvae.service.models.Served` for the attributes."""

    path: Path
    spec: InputSpec
    calibration: Calibration
    unit: str
    meaning: str
    offers: frozenset[str]
    _artifact: Artifact
    _scorer: Scorer
    _encoder: Encoder | None
    no_score: str
    platform: str = "negvae_pytorch"

    def scores(self, inputs: Inputs) -> NDArray[np.float32]:
        """Compute the decision scores (N) of images or rows; NaN where the embedding of an image is not finite."""
        stored, missing = inputs.stored, None
        if self._encoder is not None:
            stored = self._encoder.embed(stored)
            missing = ~np.isfinite(stored).all((1, 2, 3))
            stored[missing] = 0.0
        name = self.calibration.score
        with in_this_thread():
            scores = self._scorer(torch.from_numpy(stored), [name])[name]
        if missing is not None:
            scores[missing] = np.nan
        return scores if inputs.owners is None else combine(scores, inputs.owners, self.calibration.tiles)

    def look(self, batch: Batch, rows: NDArray[np.int64], wanted: Collection[str]) -> dict[str, list[NDArray[Any]]]:
        """Compute reconstructions, places on the latent map and heat maps of images.

        Args:
            batch: images or rows, as they were read.
            rows: numbers of the rows to look at, ascending.
            wanted: some of `negvae.service.models.EXTRAS`.

        Returns:
            By name, an array for each row.

        Raises:
            ValueError: if the model does not offer one of them.
        """
        for name in sorted(wanted):
            if name not in self.offers:
                raise ValueError(f"this model has no {name}; it has: {', '.join(sorted(self.offers)) or 'none'}")
        stored, owners = batch.inputs(rows)
        inputs, model, found = inputs_of(stored, self._encoder), self._artifact.model, dict[str, list[NDArray[Any]]]()
        if "reconstruction" in wanted:
            restored = reconstructions(model, inputs)
            found["reconstruction"] = list(restored) if owners is None else whole(restored, batch, rows)
        if "position" in wanted:
            found["position"] = list(positions(latent_means(model, inputs)))
        if "heatmap" in wanted:
            found["heatmap"] = whole_maps(self._artifact.maps(), batch, rows)
        return found

    def samples(self, count: int, seed: int) -> NDArray[np.uint8]:
        """Generate images from the prior (uint8, count x C x H x W)."""
        model = self._artifact.model
        with torch.inference_mode():
            codes = model.prior.sample(count, torch.Generator().manual_seed(seed)).to(model.device)
            images: NDArray[np.uint8] = model.inputs.restore(model.generate(codes)).cpu().numpy()
        return images

    def priors(self, count: int) -> dict[str, NDArray[np.float64]]:
        """Draw codes from the prior and the negative prior, and return their places on the latent map (count x 2)."""
        model, randomness = self._artifact.model, torch.Generator().manual_seed(0)
        drawn = {"prior": model.prior, "negative_prior": model.negative_prior}
        return {name: positions(prior.sample(count, randomness).double().numpy()) for name, prior in drawn.items()}


def positions(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the places of latent codes on a map on which the two priors lie apart.

    The first coordinate is the component along the line from the mean of the prior, 0, to that of the negative prior,
    c 1; the second is the distance from this line. For codes of N(0, I) the first is standard normal, and the second
    about the square root of the number of dimensions.

    Args:
        codes: latent codes, N x L.

    Returns:
        Places, N x 2.

    >>> positions(np.array([[3.0, 4.0], [8.0, 8.0]])).round(2).tolist()
    [[4.95, 0.71], [11.31, 0.0]]
    """
    along = codes.sum(1) / np.sqrt(codes.shape[1])
    across = np.sqrt(np.maximum((codes**2).sum(1) - along**2, 0))
    return np.stack([along, across], axis=1)


def load_run(directory: Path, threads: int) -> RunModel:
    """Load a calibrated run.

    Args:
        directory: folder of the run.
        threads: number of threads of torch.

    Returns:
        The model.

    Raises:
        FileNotFoundError: if the folder is not a run, or its encoder is missing.
        ValueError: if the run is damaged or not calibrated.
    """
    torch.set_num_threads(threads)
    artifact = load_artifact(directory)
    calibration = artifact.calibrated()
    encoder = encoder_of(artifact)
    scorer = artifact.scorer()
    entry = SCORES[calibration.score]
    scorer.check([entry.name])
    spec = replace(spec_of(artifact, encoder, False), resize=encoder is not None)
    offers = set() if spec.tiled else {"position"}
    if not artifact.model.takes_features:
        offers |= {"reconstruction", "samples"}
    if artifact.heatmaps is not None:
        offers |= {"heatmap"}
    no_score = "its score is not a number" if encoder is None else f"its embedding by {encoder.path.name} is not finite"
    return RunModel(
        directory, spec, calibration, entry.unit, entry.meaning, frozenset(offers), artifact, scorer, encoder,
        no_score,
    )  # fmt: skip
