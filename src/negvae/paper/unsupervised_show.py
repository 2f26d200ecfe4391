"""Table `beyond` for a terminal, as JSON and as Markdown: goals, ablation, published figures. Imports no torch."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from negvae.paper import unsupervised as beyond
from negvae.paper.profiles import Profile
from negvae.paper.published import OOD, Setting
from negvae.paper.results import run_name, table_of
from negvae.paper.show import short_commit
from negvae.paper.store import Result, is_number, up_to_date, wrong, wrong_areas, wrong_figures
from negvae.report.tables import DataTable, markdown, replace_table
from negvae.scoring.table import SCORES

BEGIN, END = "<!-- beyond: begin (negvae paper show beyond --page FILE) -->", "<!-- beyond: end -->"
GOALS_BEGIN, GOALS_END = BEGIN.replace("beyond:", "beyond goals:"), END.replace("beyond:", "beyond goals:")
CODER = "coder.json"
"""File in the folder of results with what the coder's statistics find without a network (benchmarks/coder.py)."""


class RunResults(dict[Setting, list[Result]]):
    """Results by setting, in the order of the seeds.

    Attributes:
        coder: AUROC of the coder's statistics alone, by inliers and outliers ("cifar10 > svhn"); empty if not measured.
    """

    coder: Mapping[str, float]

    def __init__(self) -> None:
        super().__init__()
        self.coder = {}


class Spread(NamedTuple):
    """Mean and standard deviation of a figure over seeds.

    Attributes:
        mean: mean over the seeds.
        std: standard deviation over the seeds, with n - 1 in the denominator; None for one seed.
        seeds: number of seeds.
    """

    mean: float
    std: float | None
    seeds: int

    def __str__(self) -> str:
        """Format as the paper does.

        >>> str(Spread(0.991, 0.002, 5))
        '0.991 (0.002)'
        """
        return f"{self.mean:.3f}" + ("" if self.std is None else f" ({self.std:.3f})")


def gather(profile: Profile, results: Path) -> RunResults:
    """Gather the finished, up-to-date results of every run of the table.

    Args:
        profile: profile that the runs were made with.
        results: folder of result files, with one table for each profile.

    Returns:
        The results by setting, in the order of the seeds.

    Raises:
        ValueError: if a result is damaged.
    """
    found = RunResults()
    if (path := results / CODER).is_file():
        try:
            areas = json.loads(path.read_text(encoding="utf-8"))["areas"]
            found.coder = {pair: float(one["auroc"]) for pair, one in areas.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: not a result of `python benchmarks/coder.py`; remove it, and that command makes it anew"
            ) from error
    table = table_of(results, profile)
    for setting in beyond.settings():
        seeds = table.seeds(setting.name)
        contents = [up_to_date(table, run_name(setting, s), profile.config(setting, s), faults=_faults) for s in seeds]
        found[setting] = [content for content in contents if content and content["status"] == "finished"]
    return found


def _faults(content: Result) -> Iterator[str]:
    """Say what is wrong with the entries that only finished results of this table have."""
    if content["status"] != "finished":
        return
    if not is_number(nats := content.get("nats_per_dim_test")):
        yield wrong("nats_per_dim_test", nats, "a number")
    for ood, row in content["evaluation"].items():
        yield from wrong_areas(f"evaluation {ood}", row)
    proxies = content.get("proxies")
    if not isinstance(proxies, dict) or not proxies:
        yield wrong("proxies", proxies, "a mapping of proxies to figures")
        return
    scores = ("combined",) if content["config"].get("negatives", "none") == "none" else ("combined", "prior_ratio")
    for name, areas in proxies.items():
        yield from wrong_figures(f"proxies {name}", areas, scores)


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and standard deviation of values, one for each seed; None for no values, or of those not finite.

    >>> str(spread([0.5, 0.75])), spread([])
    ('0.625 (0.177)', None)
    """
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) < 2 or not math.isfinite(mean):
        return Spread(mean, None, len(values))
    return Spread(mean, statistics.stdev(values), len(values))


def area(results: Sequence[Result], ood: str, score: str = "combined") -> Spread | None:
    """Return a score's AUROC over the seeds that have it; "others" as `ood` is the mean over `OTHERS`."""
    sets = beyond.OTHERS if ood == "others" else (ood,)
    key = f"auc_{score}"
    return spread([
        statistics.fmean(float(result["evaluation"][name][key]) for name in sets)
        for result in results
        if all(key in result["evaluation"].get(name, {}) for name in sets)
    ])  # fmt: skip


def likelihood_cost(found: RunResults, data: str) -> Spread | None:
    """Return the share by which test nats per dimension exceed those of the same VAE and seed without negatives."""
    mine, plain = (
        {result["seed"]: float(result["nats_per_dim_test"]) for result in found[beyond.make(data, variant)]}
        for variant in (beyond.MAIN, beyond.PLAIN)
    )
    return spread([mine[seed] / plain[seed] - 1 for seed in mine if seed in plain])


def proxy_mean(result: Result, score: str = "combined") -> float:
    """Return the mean AUROC over the proxies, by which settings are judged."""
    return statistics.fmean(float(areas[score]) for areas in result["proxies"].values())


def goals(found: RunResults) -> DataTable:
    """Tabulate our figures beside the goals, the paper's figures, the same VAE without negatives and no network."""
    lines: list[tuple[str, ...]] = []
    for goal in beyond.GOALS:
        ours, plain = (area(found[beyond.make(goal.data, v)], goal.ood) for v in (beyond.MAIN, beyond.PLAIN))
        aim = f"{goal.auroc:g}" + (f", spread < {goal.spread:g}" if goal.spread else "")
        name = f"{goal.data} > {goal.ood}"
        coder = f"{found.coder[name]:.3f}" if name in found.coder else "-"
        lines.append((name, goal.paper, aim, _text(ours), _seeds(ours), _reached(ours, goal), _text(plain), coder))
    for data in beyond.DATA:
        cost = likelihood_cost(found, data)
        known = cost is not None and math.isfinite(cost.mean)
        shown = f"{100 * cost.mean:+.1f}%" if cost is not None and known else "-"
        reached = "-" if cost is None or not known else "yes" if cost.mean <= beyond.LIKELIHOOD_GOAL else "no"
        aim = f"at most +{100 * beyond.LIKELIHOOD_GOAL:g}%"
        lines.append((f"{data}: test nats/dim over no negatives", "-", aim, shown, _seeds(cost), reached, "-", "-"))
    heads = ("train > OOD", "paper, generated, AUC KL", "goal", "ours, AUROC combined", "seeds", "reached",
             "without negatives, AUROC combined", "the coder alone, no network")  # fmt: skip
    return sheet("Detection without outside data", heads, lines)


def scores(found: RunResults, data: str) -> DataTable:
    """Tabulate every score of both models against every out-of-distribution set."""
    heads = ("model", "score", *beyond.ood_sets(data), "mean of others")
    lines = []
    for variant in (beyond.MAIN, beyond.PLAIN):
        results = found[beyond.make(data, variant)]
        for score in ("combined", beyond.ENSEMBLE, *(name for name in SCORES if name != "combined")):
            areas = [area(results, ood, score) for ood in (*beyond.ood_sets(data), "others")]
            if any(areas):
                lines.append((beyond.VARIANTS[variant].changes, score, *map(_text, areas)))
    return sheet(f"Trained on {data}: AUROC by score, mean (standard deviation over seeds)", heads, lines)


def ablation(found: RunResults, data: str) -> DataTable:
    """Tabulate each variant on a short run: proxies, by which it is judged, nats per dimension, and one OOD set."""
    heads = ("variant", "seeds", "proxies, combined", "proxies, prior_ratio", "nats/dim", f"{OOD[data]}, combined")
    lines = []
    for variant in beyond.VARIANTS.values():
        if not variant.ablation:
            continue
        results = found[beyond.make(data, variant.name)]
        figures = [
            spread([proxy_mean(result) for result in results]),
            spread([
                proxy_mean(result, "prior_ratio") for result in results
                if result["config"].get("negatives", "none") != "none"
            ]),
            spread([float(result["nats_per_dim_test"]) for result in results]),
            area(results, OOD[data]),
        ]  # fmt: skip
        lines.append((variant.changes, str(len(results)), *map(_text, figures)))
    title = f"Ablation, trained on {data} for two thirds as long: mean AUROC over the proxies; AUROC"
    return sheet(f"{title} against {OOD[data]}, which is shown and not chosen by", heads, lines)


def proxies(found: RunResults) -> DataTable:
    """Tabulate the AUROC of every proxy under the preset, over all seeds."""
    mains = {data: found[beyond.make(data, beyond.MAIN)] for data in beyond.DATA}
    names = next((list(results[0]["proxies"]) for results in mains.values() if results), [])
    lines = [
        (
            name,
            *(
                _text(spread([float(r["proxies"][name]["combined"]) for r in results if name in r["proxies"]]))
                for results in mains.values()
            ),
        )
        for name in names
    ]
    return sheet("Proxies: AUROC of combined against transformed held-out inliers", ("proxy", *beyond.DATA), lines)


def published(found: RunResults) -> DataTable:
    """Tabulate our figures beside those of published detectors."""
    pairs = [(data, OOD[data]) for data in ("cifar10", "svhn", "fashion-mnist", "mnist")]
    lines = [
        (name, *(f"{figures[pair]:.2f}" if pair in figures else "-" for pair in pairs))
        for name, figures in beyond.PUBLISHED.items()
    ]
    for label, variant, score in (
        ("negvae, unsupervised, combined", beyond.MAIN, "combined"),
        ("negvae, no negatives, dose", beyond.PLAIN, "dose"),
        ("negvae, no negatives, likelihood regret", beyond.PLAIN, "likelihood_regret"),
        ("negvae, no negatives, input complexity", beyond.PLAIN, "input_complexity"),
        ("negvae, no negatives, WAIC", beyond.PLAIN, "waic"),
        ("negvae, no negatives, typicality (batch of one)", beyond.PLAIN, "typicality"),
        ("negvae, no negatives, ELBO", beyond.PLAIN, "bpd"),
    ):
        lines.append((label, *(_text(area(found[beyond.make(d, variant)], ood, score)) for d, ood in pairs)))
    heads = ("detector", *(f"{data} > {ood}" for data, ood in pairs))
    title = (
        "Beside published detectors (AUROC as Table 1 of the LPath paper has it, arXiv 2401.04933: base model DC-VAE"
    )
    return sheet(
        f"{title} unless said; ours: the preset's VAE, for svhn trained on 8,000 of its test images)", heads, lines
    )


def sheets(found: RunResults) -> list[DataTable]:
    """Return all tables, in the order in which they are shown."""
    return [
        goals(found),
        published(found),
        *(scores(found, data) for data in beyond.DATA),
        proxies(found),
        *(ablation(found, data) for data in beyond.ABLATION_DATA),
    ]


def fill_page(path: Path, found: RunResults, profile: Profile) -> None:
    """Write the tables and what they were measured on into a Markdown file that has their markers.

    Between `BEGIN` and `END` go all tables, between `GOALS_BEGIN` and `GOALS_END` the first one alone.

    Args:
        path: Markdown file, which must exist.
        found: results by setting, from `gather`.
        profile: profile that the results were made with.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file has neither pair of markers.
    """

    def text(shown: Sequence[DataTable]) -> str:
        tables = "\n".join(markdown(sheet) for sheet in shown if sheet.rows)
        return f"{tables}\nMeasured on: {'; '.join(remarks(found, profile))}.\n"

    marked = path.is_file() and GOALS_BEGIN in path.read_text(encoding="utf-8")
    if marked:
        replace_table(path, GOALS_BEGIN, GOALS_END, text([goals(found)]))
    if not marked or BEGIN in path.read_text(encoding="utf-8"):
        replace_table(path, BEGIN, END, text(sheets(found)))


def as_json(found: RunResults, profile: Profile) -> list[dict[str, Any]]:
    """Return one entry for each goal: "table", "train", "ood", "score", "goal", "paper", "ours" (None if missing)."""
    entries = []
    for goal in beyond.GOALS:
        results = found[beyond.make(goal.data, beyond.MAIN)]
        ours = area(results, goal.ood)
        entries.append({
            "table": beyond.TABLE, "train": goal.data, "ood": goal.ood, "score": "combined",
            "goal": {"auroc": goal.auroc, "spread": goal.spread}, "paper": goal.paper,
            "ours": ours and {"mean": ours.mean, "std": ours.std, "seeds": [r["seed"] for r in results],
                              "profile": profile.name, "data_notes": notes(results)},
        })  # fmt: skip
    return entries


def notes(results: Sequence[Result]) -> list[str]:
    """Return the notes on the data of some results, each once."""
    return list(dict.fromkeys(note for result in results for note in result["notes"]))


def remarks(found: RunResults, profile: Profile) -> list[str]:
    """Describe what the figures were measured on, and how many of the runs have results."""
    results = [result for group in found.values() for result in group]
    devices = sorted({result["provenance"]["device"] for result in results})
    commits = sorted({short_commit(str(result["provenance"]["commit"])) for result in results})
    lines = [f"profile {profile.name}; {' and '.join(devices)}; commit {', '.join(commits)}; {len(results)} of"
             f" {sum(profile.seeds_of(s) for s in found)} runs"]  # fmt: skip
    lines.append("at most 5,000 images of each test set, at even distances (likelihood_regret: 200, seed 0)")
    lines.append("'combined, ensemble' and waic: each seed's model with those of all lower seeds, two to five")
    if found.coder:
        lines.append("the coder alone: as many images, by `python benchmarks/coder.py`")
    return [*lines, *notes(results)]


def sheet(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> DataTable:
    """Return a table whose first column names the rows, and whose others hold figures."""
    return DataTable(header, rows, title=title, align="l" + "r" * (len(header) - 1))


def _text(value: Spread | None) -> str:
    return "-" if value is None or not math.isfinite(value.mean) else str(value)


def _seeds(value: Spread | None) -> str:
    return "0" if value is None else str(value.seeds)


def _reached(ours: Spread | None, goal: beyond.Goal) -> str:
    if ours is None:
        return "-"
    narrow = goal.spread is None or (ours.std is not None and ours.std < goal.spread)
    return "yes" if ours.mean >= goal.auroc and narrow else "no"
