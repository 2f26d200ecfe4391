"""WAIC: models trained in the same way agree on inputs they know and differ on others."""

from __future__ import annotations

import torch
from torch import Tensor

from negvae.scoring.passes import Pass


def waic(x: Pass) -> Tensor:
    """Return the mean over the models of -ELBO plus its variance over the models, in nats (N).

    The negative of equation 2 in Choi et al., "WAIC, but why? Generative ensembles for robust anomaly detection",
    2018: E[log p(x)] - Var[log p(x)]; the ELBO stands in for the likelihood.
    """
    nats = torch.stack([member.kl - member.log_likelihood for member in x.members])
    return nats.mean(0) + nats.var(0)
