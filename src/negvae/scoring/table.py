"""The table of scores: the name, meaning, unit and needs of each. Imports no torch.

Everything that uses scores reads it: help texts and choices of the command line, the scorer, calibration, reports and
export. `register_score` adds a score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from negvae.citations import papers_of
from negvae.registry import Entry, Table, choose, require_arguments

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor

    from negvae.scoring.passes import Pass
    from negvae.scoring.references import Values

ScoreFunction = Callable[["Pass"], "Tensor"]
"""A score: from one pass over N inputs to N numbers, larger = more out-of-distribution."""
Function = TypeVar("Function", bound="ScoreFunction")
Need = Literal["decoder", "reference", "ensemble", "pixels", "features", "transformations"]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The way in which a score is fitted to training images.

    Attributes:
        statistics: function from a pass over N inputs to their statistics, N x K or N x T x L in float64.
        fit: function from the statistics of training images (NumPy) to the array that saved folders keep.
        distance: function from statistics and the fitted array to the score (N).
        is_fitted: function that returns whether an array has the form that `fit` gives.
    """

    statistics: ScoreFunction
    fit: Callable[[ArrayLike], Values]
    distance: Callable[[Tensor, Tensor], Tensor]
    is_fitted: Callable[[Values], bool]


@dataclass(frozen=True, kw_only=True)
class Score(Entry[ScoreFunction]):
    """One score; larger is always more out-of-distribution.

    Attributes:
        unit: unit of the score's values.
        needs: needs beyond the encoder: "decoder"; "reference", statistics of training images; "ensemble", further
            models trained in the same way; "pixels", images and not rows of features; "features", rows of features and
            not images; "transformations", a model trained with transformations that have priors.
        label: name of the score in tables and charts.
        citation: publication that described the score, as running text cites it; that of `papers` if left out.
        calibrated: whether held-out inliers are scored with it by default.
        evaluated: whether `negvae evaluate` measures it whatever the decision score is.
        not_exported: reason why the score cannot be part of an ONNX graph; empty if it can.
        fit: for a score that compares statistics of an image with those of training images, the `Fit` that defines
            them, or its location as "module:attribute".
    """

    unit: str
    needs: tuple[Need, ...] = ("decoder",)
    label: str = ""
    citation: str = ""
    calibrated: bool = False
    evaluated: bool = False
    not_exported: str = ""
    fit: Fit | str | None = None

    def __post_init__(self) -> None:
        """Take the name for a label, and the publications for a citation, if none is given."""
        object.__setattr__(self, "label", self.label or self.name.replace("_", " "))
        cited = "; ".join(paper.short for paper in papers_of(self.papers))
        object.__setattr__(self, "citation", self.citation or cited)

    def read(self, x: Pass) -> Tensor:
        """Return the score's values for a pass over N inputs (N, float64)."""
        return x.score(self.name)

    def load_fit(self) -> Fit | None:
        """Return how the score is fitted to training images, importing this if needed; None if it is not fitted."""
        return Entry(name=self.name, meaning=self.meaning, target=self.fit).load() if self.fit else None

    def describe(self) -> str:
        """Describe the score's meaning, unit and source for people."""
        return f"{self.meaning} ({'; '.join(filter(None, (self.unit, self.citation)))})"

    @property
    def axis(self) -> str:
        """Return label and unit, for the axis of a chart.

        >>> SCORES["kl"].axis
        'KL, nats'
        """
        return f"{self.label}, {self.unit}"


SCORES: Table[Score] = Table(
    "score",
    [
        Score(
            name="combined", meaning="how unusual an input is by several scores together, on the training data's scale",
            unit="1 = where the most extreme 5% of the training data begin, by one score",
            needs=("decoder", "reference"), calibrated=True, target="negvae.scoring.combination:combined",
        ),
        Score(
            name="neighbors", meaning="distance to the nearest inliers in two spaces, as -log of its tail probability",
            unit="nats", needs=("reference", "features"), calibrated=True, papers=("ramaswamy2000", "ledoit2004"),
            target="negvae.scoring.neighbors:neighbors",
        ),
        Score(
            name="defects", papers=("li2021", "zavrtanik2021", "schlueter2022"),
            meaning="mean log-odds of the negative prior in the most conspicuous 1% of the pixels",
            unit="nats per latent dimension, over c", needs=("reference", "pixels"),
            target="negvae.scoring.heatmaps:defects", not_exported="the file's output heatmap holds its maps",
        ),
        Score(
            name="dose", meaning="how unusual the model's statistics are, all together",
            unit="squared Mahalanobis distance", needs=("decoder", "reference"), papers=("morningstar2021",),
            calibrated=True, target="negvae.scoring.dose:dose", fit="negvae.scoring.dose:DENSITY",
        ),
        Score(
            name="bpd", label="BPD", meaning="negative ELBO", unit="bits per dimension", calibrated=True,
            evaluated=True, target="negvae.scoring.scores:bpd",
        ),
        Score(
            name="kl", label="KL", meaning="KL(q(z|x) || N(0, I))", unit="nats", needs=(), calibrated=True,
            papers=("csiszarik2019",), evaluated=True, target="negvae.scoring.scores:kl",
        ),
        Score(
            name="prior_ratio", meaning="KL to the positive prior minus KL to the negative prior", unit="nats",
            needs=(), calibrated=True, evaluated=True, target="negvae.scoring.scores:prior_ratio",
        ),
        Score(
            name="transformations_kl", papers=("golan2018",), label="transformations, KL",
            meaning="KL of every transformed copy to its own prior, summed", unit="nats", needs=("transformations",),
            calibrated=True, target="negvae.scoring.transformations:transformations_kl",
        ),
        Score(
            name="transformations_distance", papers=("golan2018",), label="transformations, distance",
            meaning="distance of transformed copies' codes from their priors, by the covariance of training copies",
            unit="Mahalanobis distance", needs=("transformations", "reference"), calibrated=True,
            target="negvae.scoring.transformations:transformations_distance",
            fit="negvae.scoring.transformations:DISTANCE",
        ),
        Score(
            name="latent_neighbors", papers=("ramaswamy2000",),
            meaning="radius around the posterior mean that holds the posterior means of 2% of the training images",
            unit="standard deviations of the training images'", needs=("pixels", "reference"),
            target="negvae.scoring.latent_neighbors:latent_neighbors",
            fit="negvae.scoring.latent_neighbors:NEAREST",
        ),
        Score(
            name="reconstruction", meaning="-E log p(x|z) under q(z|x)", unit="nats", papers=("an2015",),
            calibrated=True, target="negvae.scoring.scores:reconstruction",
        ),
        Score(
            name="latent_norm", meaning="squared length of the posterior mean",
            unit="squared standard deviations of the prior", needs=(), calibrated=True,
            target="negvae.scoring.scores:latent_norm",
        ),
        Score(
            name="iwae", label="IWAE", meaning="negative importance-weighted bound on log p(x)",
            unit="bits per dimension", papers=("burda2016",), target="negvae.scoring.scores:iwae",
        ),
        Score(
            name="typicality", meaning="|bpd - mean bpd of training images|", unit="bits per dimension",
            needs=("decoder", "reference"), papers=("nalisnick2019",), calibrated=True,
            target="negvae.scoring.combination:typicality",
        ),
        Score(
            name="input_complexity", meaning="bpd less the size of a lossless PNG", unit="bits per dimension",
            needs=("decoder", "pixels"), papers=("serra2020",),
            target="negvae.scoring.complexity:input_complexity",
            not_exported="it compresses every image as a PNG",
        ),
        Score(
            name="likelihood_regret", meaning="gain of the ELBO by fitting the posterior to the image",
            unit="bits per dimension", papers=("xiao2020",),
            target="negvae.scoring.regret:likelihood_regret", not_exported="it fits a posterior to every image",
        ),
        Score(
            name="waic", label="WAIC", meaning="mean of -ELBO over an ensemble plus its variance", unit="nats",
            needs=("decoder", "ensemble"), papers=("choi2018",), target="negvae.scoring.ensemble:waic",
            not_exported="it takes an ensemble",
        ),
    ],
)  # fmt: skip
"""Every score that there is."""


def names_of(keep: Callable[[Score], bool]) -> tuple[str, ...]:
    """Return the names of the scores for which `keep` is true, in the table's order.

    >>> names_of(lambda score: "ensemble" in score.needs)
    ('waic',)
    """
    return tuple(score.name for score in SCORES.entries() if keep(score))


def register_score(
    name: str, *, unit: str, meaning: str = "", needs: Iterable[Need] = ("decoder",), citation: str = ""
) -> Callable[[Function], Function]:
    """Make a decorator that adds a function to the scores: for `fit`, calibration, saved folders, command line, ONNX.

    Args:
        name: name of the score in saved folders and on the command line.
        unit: unit of the score's values.
        meaning: phrase for help texts and reports; the first line of the function's docstring if left out.
        needs: needs beyond the encoder, as listed in `Score`; () for a score of the encoder alone.
        citation: publication that described the score.

    Returns:
        A decorator that leaves the function as it is.

    Raises:
        ValueError: if the name is taken or a need is unknown.
        TypeError: when the decorator is applied, if its argument cannot be called with a pass alone.
    """
    SCORES.check_name(name)
    wanted = tuple(needs)
    for need in wanted:
        choose("need of a score", need, get_args(Need))

    def add(function: Function) -> Function:
        require_arguments(f"score {name}", function, "x")
        first = next(iter((function.__doc__ or "").strip().splitlines()), str(name)).rstrip(".")
        SCORES.add(
            Score(name=name, meaning=meaning or first, unit=unit, needs=wanted, citation=citation, target=function)
        )
        return function

    return add


def score_of(wanted: str | Score | ScoreFunction) -> Score:
    """Return the entry of a score that is given by name, as its entry or as the function that was registered.

    Args:
        wanted: name, entry or registered function of the score.

    Returns:
        The entry.

    Raises:
        ValueError: if there is no such score; the message names what is valid.

    >>> score_of("kl").name
    'kl'
    """
    if isinstance(wanted, str):
        return SCORES[wanted]
    for score in SCORES.entries():
        if wanted is score or wanted is score.target:
            return score
    name = getattr(wanted, "name", None) or getattr(wanted, "__name__", repr(wanted))
    raise ValueError(f'score {name} is not registered: put @negvae.register_score("{name}", unit=...) above it')
