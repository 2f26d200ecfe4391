import dataclasses

import numpy as np
import pytest
import torch

from negvae.scoring import neighbors
from negvae.scoring.calibration import p_values
from negvae.scoring.certificates import fpr_bounds
from negvae.scoring.neighbors import Neighbors, column_weights, fit_neighbors, neighbor_score, whiten, whitening


def scores(fitted: Neighbors, rows: np.ndarray) -> np.ndarray:
    return neighbor_score(torch.from_numpy(rows), fitted.tensors(), fitted.nearest).numpy()


def correlated(count: int, columns: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(columns, columns)) / np.sqrt(columns)
    return random.normal(size=(count, columns)) @ mixing


@pytest.mark.parametrize("columns", [4, 60])
def test_whitening_divides_by_the_shrunk_second_moments(columns: int):
    rows = correlated(30, columns)
    ridge = 0.25 * float(np.square(rows).sum()) / columns
    basis, damping, unit = whitening(rows, ridge)
    moments = (rows.T @ rows + ridge * np.eye(columns)) / 30
    new = correlated(5, columns, seed=1)
    wanted = np.einsum("nd,nd->n", new, np.linalg.solve(moments, new.T).T)
    found = whiten(new, basis, damping, unit)
    np.testing.assert_allclose(np.square(found).sum(1), wanted, rtol=1e-9)


@pytest.mark.parametrize("columns", [4, 60])
def test_a_held_out_row_is_scored_as_if_it_were_no_reference_row(columns: int):
    training, held_out = correlated(40, columns), correlated(6, columns, seed=1)
    fitted, found = fit_neighbors(training, held_out)
    rows = np.concatenate([training, held_out]) * fitted.weights
    ridge = float(np.square(rows[:40]).sum()) / columns * neighbors.odds(neighbors.shrinkage(rows[:40]))
    for number in range(6):
        others = np.delete(rows, 40 + number, axis=0)
        moments = (others.T @ others + ridge * np.eye(columns)) / 46
        apart = others - rows[40 + number]
        whitened = np.sqrt(np.einsum("nd,nd->n", apart, np.linalg.solve(moments, apart.T).T))
        distances = [np.sort(np.linalg.norm(apart, axis=1))[:3].mean(), np.sort(whitened)[:3].mean()]
        used = [torch.tensor([distance]) for distance in distances][-len(fitted.excess) :]
        tensors = fitted.tensors()
        wanted = float(neighbors.larger_tail(used, tensors["tails"], tensors["excess"]))
        assert found[number] == pytest.approx(wanted, rel=1e-6)


def test_another_row_among_the_references_brings_no_row_farther_away():
    """What the proof of validity rests on, with the ridge and the unit of distances held fixed."""
    rows, ridge = correlated(60, 5), 3.0

    def distances(of: np.ndarray) -> np.ndarray:
        basis, damping, unit = whitening(of, ridge)
        plain, whitened = neighbors.among(of, whiten(of, basis, damping, unit), np.arange(60), 3)
        return np.stack([plain, whitened / np.sqrt(len(of))])

    before = distances(rows)
    for seed in range(10):
        new = correlated(1, 5, seed=100 + seed) * 3
        assert (distances(np.concatenate([rows, new])) <= before * (1 + 1e-9)).all()


@pytest.mark.parametrize("kind", ["continuous", "few values", "more columns than rows"])
def test_p_values_are_valid(kind: str):
    """Over many data sets, an inlier's p-value is below a with a probability of at most a."""
    random = np.random.default_rng(0)

    def draw(count: int) -> np.ndarray:
        if kind == "few values":
            return random.integers(0, 3, (count, 2)).astype(float)
        return random.standard_t(3, (count, 4 if kind == "continuous" else 60))

    found = []
    for _ in range(400):
        training, held_out, new = draw(25), draw(19), draw(5)
        mean, deviation = training.mean(0), training.std(0) + 1e-9
        fitted, calibration = fit_neighbors((training - mean) / deviation, (held_out - mean) / deviation)
        found.append(p_values(calibration, scores(fitted, (new - mean) / deviation)))
    for level in (0.05, 0.1, 0.25):
        share = (np.array(found) <= level).mean()
        assert share <= level + 3.5 * np.sqrt(level * (1 - level) / 400)
        if kind == "continuous":
            assert share >= level / 3  # and they are not valid by being useless


def test_each_space_finds_what_the_other_misses():
    random = np.random.default_rng(0)
    shared = random.normal(size=(600, 1))
    rows = np.concatenate([shared + 0.05 * random.normal(size=(600, 2)), random.normal(size=(600, 6))], axis=1)
    fitted, calibration = fit_neighbors(rows[:400], rows[400:])
    broken, far = np.zeros((2, 8))
    broken[:2] = 1.0, -1.0  # each value is usual, and they disagree
    far[5] = 8.0
    assert (p_values(calibration, scores(fitted, np.stack([broken, far]))) <= 0.02).all()


@pytest.mark.parametrize(("count", "columns"), [(240, 3), (800, 10)])
def test_the_score_is_the_log_of_a_tail_probability(count: int, columns: int):
    """Even where columns are independent, so that the best shrinkage is nearly all there is of the second moments."""
    random = np.random.default_rng(0)
    fitted, held_out = fit_neighbors(random.normal(size=(count, columns)), random.normal(size=(count // 4, columns)))
    fresh = scores(fitted, random.normal(size=(2000, columns)))
    for found in (held_out, fresh):
        assert 0.2 < np.median(found) < 2  # of two spaces the larger, and log 2 if they were one
        assert (found > np.log(20)).mean() == pytest.approx(0.075, abs=0.075)


def leaving_out(fitted: Neighbors, rows: np.ndarray, numbers: list[int]) -> Neighbors:
    """Return the measurements with some of the reference rows left out of the neighbors and of the whitening."""
    others = np.delete(rows * fitted.weights, numbers, axis=0)
    basis, damping, unit = whitening(others, float(fitted.unit[0]) ** 2 * len(rows))
    # Moments that are sums over all rows, divided by one number, have one scale whoever is left out.
    parts = {"basis": basis, "damping": damping, "unit": np.array([unit * np.sqrt(len(others) / len(rows))])}
    plain = others if len(fitted.rows) else fitted.rows
    return dataclasses.replace(fitted, rows=plain, whitened=whiten(others, *parts.values()), **parts)


def test_a_reference_row_is_scored_as_if_it_were_none():
    rows = correlated(60, 4)
    fitted, held_out = fit_neighbors(rows[:40], rows[40:])
    assert scores(fitted, rows[40:]) == pytest.approx(held_out, rel=1e-9)
    for number in (0, 25, 59):
        row = rows[number : number + 1]
        without = leaving_out(fitted, rows, [number])
        assert scores(without, row)[0] == pytest.approx(scores(fitted, row)[0], rel=1e-9)


def test_a_held_out_row_with_a_copy_is_scored_as_a_new_row_with_one():
    rows = correlated(60, 70)  # so many columns that the whitened space alone counts
    rows[45] = rows[3]
    fitted, held_out = fit_neighbors(rows[:40], rows[40:])
    without = leaving_out(fitted, rows, [3, 45])
    assert scores(without, rows[45:46])[0] == pytest.approx(held_out[5], rel=1e-9)


def test_weights_look_past_a_few_values_far_out():
    random = np.random.default_rng(0)
    usual = random.normal(size=(2000, 1))
    heavy = np.where(random.random((2000, 1)) < 0.01, 300.0, random.normal(size=(2000, 1)))
    mostly_zero = np.where(random.random((2000, 1)) < 0.8, 0.0, random.exponential(size=(2000, 1)))
    weights = column_weights(np.concatenate([usual, heavy, mostly_zero, np.full((2000, 1), 7.0)], axis=1))
    assert weights[0] == pytest.approx(1, abs=0.05)
    assert weights[1] == pytest.approx(10)
    assert weights[2] == 1
    assert weights[3] == pytest.approx(np.sqrt(2000))


def test_memory_is_bounded():
    fitted, held_out = fit_neighbors(correlated(9000, 3), correlated(100, 3, seed=1))
    assert len(fitted.rows) <= neighbors.REFERENCE_ROWS
    assert len(held_out) == 100
    wide, _ = fit_neighbors(correlated(300, 20_000 // 10), correlated(10, 2000, seed=1))
    assert wide.whitened.size <= neighbors.REFERENCE_NUMBERS
    assert wide.rows.size == 0  # more columns than rows: the whitened space alone


def test_held_out_rows_are_scored_a_few_at_a_time(monkeypatch):
    taken, usual = [], neighbors._squared_distances
    monkeypatch.setattr(neighbors, "REFERENCE_ROWS", 200)

    def squared(rows, references):
        taken.append(len(rows))
        return usual(rows, references)

    monkeypatch.setattr(neighbors, "_squared_distances", squared)
    held_out = correlated(1500, 3, seed=1)
    fitted, found = fit_neighbors(correlated(900, 3), held_out)
    assert max(taken) <= neighbors._CHUNK < len(held_out)
    np.testing.assert_allclose(found, scores(fitted, held_out), rtol=1e-9)


@pytest.mark.parametrize(
    "change",
    [dict(unit=np.zeros(1)), dict(weights=np.ones(9)), dict(excess=np.full(2, np.nan)), dict(count=np.zeros(1))],
)
def test_arrays_that_do_not_belong_together_are_refused(change: dict[str, np.ndarray]):
    fitted, _ = fit_neighbors(correlated(20, 3), correlated(5, 3))
    with pytest.raises(ValueError, match="neighbors: "):
        dataclasses.replace(fitted, **change)


def test_one_training_row_is_refused():
    with pytest.raises(ValueError, match="2 at least"):
        fit_neighbors(np.zeros((1, 3)), np.zeros((4, 3)))


def test_rows_that_are_all_alike_are_inliers_and_any_other_is_not():
    fitted, calibration = fit_neighbors(np.zeros((30, 2)), np.zeros((20, 2)))
    assert (calibration == 0).all()
    assert scores(fitted, np.array([[0.0, 0.0], [0.0, 1.0]])).tolist()[0] == 0
    assert scores(fitted, np.array([[0.0, 1.0]])) > 0


def test_outliers_that_lie_together_are_found_where_their_share_is_said():
    random = np.random.default_rng(0)
    rows = np.concatenate([random.normal(size=(190, 4)), random.normal(8, 0.1, (10, 4))])[random.permutation(200)]
    found = {}
    for share in (0.0, 0.05):
        fitted, _ = fit_neighbors(rows[:150], rows[150:], share)
        found[share] = scores(fitted, np.full((1, 4), 8.0))[0] > np.quantile(scores(fitted, rows), 0.9)
    assert found == {0.0: False, 0.05: True}


def test_scales_and_counts_are_above_zero_and_all_rows_are_kept():
    random = np.random.default_rng(0)
    fitted, _ = fit_neighbors(random.normal(size=(120, 30)), random.normal(size=(20, 30)))
    assert len(fitted.whitened) == len(fitted.rows) == 140  # also of many columns
    for change in ({"unit": np.zeros(1)}, {"excess": np.array([1.0, 0.0])}, {"count": np.zeros(1)}):
        with pytest.raises(ValueError, match="out of range"):
            dataclasses.replace(fitted, **change)


def test_the_tail_of_few_distances_begins_at_their_median():
    knots, excess = neighbors.tail_of(np.arange(12.0))
    assert knots[0, -1] == 5.5
    assert knots[1, -1] == pytest.approx(np.log(2))
    assert excess == pytest.approx(np.arange(6.0, 12).mean() - 5.5)


def test_tails_are_of_the_share_that_is_clean():
    random = np.random.default_rng(0)
    training, held_out = random.normal(size=(200, 3)), random.normal(size=(40, 3))
    clean, _ = fit_neighbors(training, held_out)
    np.testing.assert_allclose(clean.tails[:, 1, -1], -np.log(0.05))  # 95% of 200 rows leave 10 beyond
    few, _ = fit_neighbors(training[:50], held_out)
    np.testing.assert_allclose(few.tails[:, 1, -1], -np.log(0.2))  # 10 of 50
    dirty, _ = fit_neighbors(np.concatenate([training, random.normal(40, 20, (20, 3))]), held_out, 0.1)
    assert 0.5 < dirty.tails[0, 0, -1] / clean.tails[0, 0, -1] < 2  # and not of the outliers' distances


def test_reference_rows_are_as_many_as_the_numbers_they_hold_allow(monkeypatch):
    monkeypatch.setattr(neighbors, "REFERENCE_NUMBERS", 60)
    rows = np.random.default_rng(0).normal(size=(50, 3))
    found, _ = fit_neighbors(rows[:40], rows[40:])
    assert len(found.whitened) == 20  # 60 numbers of 3 columns, evenly taken of the 40


def test_the_mean_excess_is_over_the_last_knot():
    distances = np.concatenate([np.linspace(0, 1, 9900), np.linspace(5, 7, 100)])
    knots, excess = neighbors.tail_of(distances)
    last = knots[0, -1]
    assert excess == pytest.approx((distances[distances > last] - last).mean())


def test_bounds_hold_where_neighbors_share_their_neighbors_only_if_held_out_rows_are_no_references():
    """Rows on a curve in four columns: 120 held out beside 30, 200 times; the true rate is that of a fine grid."""

    def curve(angle):
        return np.column_stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)])

    random, missed = np.random.default_rng(0), {True: 0, False: 0}
    grid = torch.from_numpy(curve(np.linspace(0, 2 * np.pi, 500, endpoint=False)))
    for _ in range(200):
        rows = curve(random.uniform(0, 2 * np.pi, 150))
        for join in missed:
            fitted, held_out = fit_neighbors(rows[:30], rows[30:], join=join)
            assert len(fitted.whitened) == (150 if join else 30)
            threshold = np.sort(held_out)[-12]
            rate = float((neighbor_score(grid, fitted.tensors(), fitted.nearest) > threshold).double().mean())
            missed[join] += fpr_bounds(held_out, threshold, 0.9).low > rate
    assert missed[False] <= 20 + 3 * np.sqrt(18)  # one in ten may lie below its bound
    assert missed[True] > missed[False]
