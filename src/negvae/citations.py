"""The publications behind the parts, as data: the docs' tables, help texts and `negvae cite` read them. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import negvae


@dataclass(frozen=True)
class Paper:
    """A publication.

    Attributes:
        key: key in BibTeX, by which the entries of tables refer to the publication.
        title: full title.
        authors: full names, in the publication's order.
        year: year of publication.
        link: where it can be read.
        venue: journal, conference or archive.

    >>> PAPERS["serra2020"].short
    'Serrà et al. 2020'
    """

    key: str
    title: str
    authors: tuple[str, ...]
    year: int
    link: str
    venue: str = "arXiv"

    @property
    def short(self) -> str:
        """Return family names and year, as running text cites the publication."""
        families = [name.rpartition(" ")[2] for name in self.authors]
        who = families[0] if len(families) == 1 else " & ".join(families) if len(families) == 2 else ""
        return f"{who or f'{families[0]} et al.'} {self.year}"

    def bibtex(self) -> str:
        """Return the entry for a BibTeX file."""
        fields = {
            "title": f"{{{self.title}}}",
            "author": " and ".join(self.authors),
            "year": str(self.year),
            "journal" if self.venue == "arXiv" else "booktitle": self.venue,
            "url": self.link,
        }
        kind = "article" if self.venue == "arXiv" else "inproceedings"
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
        return "\n".join([f"@{kind}{{{self.key},", *lines, "}"])


def _arxiv(key: str, number: str, title: str, *authors: str, venue: str = "arXiv") -> Paper:
    return Paper(key, title, authors, int(key[-4:]), f"https://arxiv.org/abs/{number}", venue)


_ALL = (
    _arxiv(
        "csiszarik2019", "1910.02760", "Negative Sampling in Variational Autoencoders",
        "Adrián Csiszárik", "Beatrix Benkő", "Dániel Varga",
    ),
    _arxiv("kingma2014", "1312.6114", "Auto-Encoding Variational Bayes", "Diederik P. Kingma", "Max Welling",
           venue="International Conference on Learning Representations"),
    _arxiv(
        "rosca2018", "1802.06847", "Distribution Matching in Variational Inference",
        "Mihaela Rosca", "Balaji Lakshminarayanan", "Shakir Mohamed",
    ),
    _arxiv(
        "nalisnick2018", "1810.09136", "Do Deep Generative Models Know What They Don't Know?",
        "Eric Nalisnick", "Akihiro Matsukawa", "Yee Whye Teh", "Dilan Gorur", "Balaji Lakshminarayanan",
    ),
    _arxiv(
        "nalisnick2019", "1906.02994",
        "Detecting Out-of-Distribution Inputs to Deep Generative Models Using Typicality",
        "Eric Nalisnick", "Akihiro Matsukawa", "Yee Whye Teh", "Balaji Lakshminarayanan",
    ),
    _arxiv(
        "morningstar2021", "2006.09273", "Density of States Estimation for Out-of-Distribution Detection",
        "Warren R. Morningstar", "Cusuh Ham", "Andrew G. Gallagher", "Balaji Lakshminarayanan", "Alexander A. Alemi",
        "Joshua V. Dillon", venue="International Conference on Artificial Intelligence and Statistics",
    ),
    _arxiv(
        "serra2020", "1909.11480", "Input Complexity and Out-of-Distribution Detection with Likelihood-Based"
        " Generative Models", "Joan Serrà", "David Álvarez", "Vicenç Gómez", "Olga Slizovskaia", "José F. Núñez",
        "Jordi Luque", venue="International Conference on Learning Representations",
    ),
    _arxiv(
        "xiao2020", "2003.02977",
        "Likelihood Regret: An Out-of-Distribution Detection Score for Variational Auto-Encoder",
        "Zhisheng Xiao", "Qing Yan", "Yali Amit", venue="Advances in Neural Information Processing Systems",
    ),
    _arxiv("choi2018", "1810.01392", "WAIC, but Why? Generative Ensembles for Robust Anomaly Detection",
           "Hyunsun Choi", "Eric Jang", "Alexander A. Alemi"),
    _arxiv("burda2016", "1509.00519", "Importance Weighted Autoencoders", "Yuri Burda", "Roger Grosse",
           "Ruslan Salakhutdinov", venue="International Conference on Learning Representations"),
    Paper(
        "an2015", "Variational Autoencoder Based Anomaly Detection Using Reconstruction Probability",
        ("Jinwon An", "Sungzoon Cho"), 2015, "http://dm.snu.ac.kr/static/docs/TR/SNUDM-TR-2015-03.pdf",
        "Special Lecture on IE",
    ),
    _arxiv("miyato2018", "1802.05957", "Spectral Normalization for Generative Adversarial Networks",
           "Takeru Miyato", "Toshiki Kataoka", "Masanori Koyama", "Yuichi Yoshida",
           venue="International Conference on Learning Representations"),
    _arxiv("noroozi2016", "1603.09246", "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles",
           "Mehdi Noroozi", "Paolo Favaro", venue="European Conference on Computer Vision"),
    _arxiv("yun2019", "1905.04899", "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable"
           " Features", "Sangdoo Yun", "Dongyoon Han", "Seong Joon Oh", "Sanghyuk Chun", "Junsuk Choe", "Youngjoon Yoo",
           venue="IEEE/CVF International Conference on Computer Vision"),
    _arxiv("zhang2018", "1710.09412", "mixup: Beyond Empirical Risk Minimization", "Hongyi Zhang", "Moustapha Cisse",
           "Yann N. Dauphin", "David Lopez-Paz", venue="International Conference on Learning Representations"),
    _arxiv("gidaris2018", "1803.07728", "Unsupervised Representation Learning by Predicting Image Rotations",
           "Spyros Gidaris", "Praveer Singh", "Nikos Komodakis",
           venue="International Conference on Learning Representations"),
    Paper(
        "ramaswamy2000", "Efficient Algorithms for Mining Outliers from Large Data Sets",
        ("Sridhar Ramaswamy", "Rajeev Rastogi", "Kyuseok Shim"), 2000, "https://doi.org/10.1145/342009.335437",
        "ACM SIGMOD International Conference on Management of Data",
    ),
    _arxiv("theis2016", "1511.01844", "A Note on the Evaluation of Generative Models", "Lucas Theis",
           "Aäron van den Oord", "Matthias Bethge", venue="International Conference on Learning Representations"),
    _arxiv("he2016", "1512.03385", "Deep Residual Learning for Image Recognition", "Kaiming He", "Xiangyu Zhang",
           "Shaoqing Ren", "Jian Sun", venue="IEEE Conference on Computer Vision and Pattern Recognition"),
    _arxiv("golan2018", "1805.10917", "Deep Anomaly Detection Using Geometric Transformations", "Izhak Golan",
           "Ran El-Yaniv", venue="Advances in Neural Information Processing Systems"),
    _arxiv("hendrycks2019", "1812.04606", "Deep Anomaly Detection with Outlier Exposure", "Dan Hendrycks",
           "Mantas Mazeika", "Thomas Dietterich", venue="International Conference on Learning Representations"),
    _arxiv(
        "li2021", "2104.04015", "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization",
        "Chun-Liang Li", "Kihyuk Sohn", "Jinsung Yoon", "Tomas Pfister",
        venue="IEEE/CVF Conference on Computer Vision and Pattern Recognition",
    ),
    _arxiv(
        "zavrtanik2021", "2108.07610",
        "DRAEM - A Discriminatively Trained Reconstruction Embedding for Surface Anomaly Detection",
        "Vitjan Zavrtanik", "Matej Kristan", "Danijel Skočaj",
        venue="IEEE/CVF International Conference on Computer Vision",
    ),
    _arxiv(
        "schlueter2022", "2109.15222",
        "Natural Synthetic Anomalies for Self-Supervised Anomaly Detection and Localization",
        "Hannah M. Schlüter", "Jeremy Tan", "Benjamin Hou", "Bernhard Kainz",
        venue="European Conference on Computer Vision",
    ),
    Paper(
        "ledoit2004", "A Well-Conditioned Estimator for Large-Dimensional Covariance Matrices",
        ("Olivier Ledoit", "Michael Wolf"), 2004, "https://doi.org/10.1016/S0047-259X(03)00096-4",
        "Journal of Multivariate Analysis",
    ),
)  # fmt: skip
PAPERS = {paper.key: paper for paper in _ALL}
"""The publications by key."""
METHOD = "csiszarik2019"
"""Key of the paper that negvae implements."""


def papers_of(keys: Iterable[str]) -> list[Paper]:
    """Return publications in the order in which their keys come, each once.

    Args:
        keys: keys of `PAPERS`; a key may come more than once.

    Returns:
        The publications.

    Raises:
        ValueError: if a key is unknown.

    >>> [paper.short for paper in papers_of(["xiao2020", "burda2016", "xiao2020"])]
    ['Xiao et al. 2020', 'Burda et al. 2016']
    """
    unknown = [key for key in keys if key not in PAPERS]
    if unknown:
        raise ValueError(f"unknown publication {unknown[0]!r}: known are {', '.join(PAPERS)}")
    return [PAPERS[key] for key in dict.fromkeys(keys)]


def software_bibtex() -> str:
    """Return the BibTeX entry of negvae itself, with its version."""
    fields = {"title": "{negvae}", "author": "{The negvae developers}", "note": f"Version {negvae.__version__}"}
    return "\n".join(["@software{negvae,", *(f"  {name} = {{{value}}}," for name, value in fields.items()), "}"])
