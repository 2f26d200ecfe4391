"""Work for the cluster, small."""

from negvae.cluster.score import score_on_cluster
from negvae.paper.published import settings
from negvae.paper.results import run_name, table_of
from negvae.paper.runner import Plan
from tests.conftest import blobs
from tests.paper.conftest import write_idx

BASELINE = settings()["fashion-mnist-bernoulli-none"]


def score(nodes, model, inputs, out, **options):
    return score_on_cluster(model, inputs, str(out), address=nodes.address, **options)


def parts(folder):
    return sorted(folder.glob("part-*.parquet"))


def write_paper_sets(root, count):
    """fashion-mnist and mnist of so many training images, partial sets."""
    for seed, name in enumerate(("fashion-mnist", "mnist")):
        for file, images in (("train", count), ("t10k", 40)):
            pixels = blobs(images, (1, 28, 28), seed + 10 * images)[:, 0].numpy()
            write_idx(root / name / f"{file}-images-idx3-ubyte", pixels if seed else 255 - pixels)
    return root


def paper_plan(folder, profile, seeds=1):
    runs = tuple((BASELINE, seed) for seed in range(seeds))
    return Plan(profile, runs, folder / "results", folder / "work", "cpu")


def figures(plan, seed=0):
    """What must not depend on where a run was made: everything but times."""
    result = table_of(plan.results, plan.recipe).get(run_name(BASELINE, seed))
    curve = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in result["curve"]]
    return {name: result[name] for name in ("evaluation", "quantiles", "data", "notes")} | {"curve": curve}
