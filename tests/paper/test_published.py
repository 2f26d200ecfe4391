import pytest

from negvae.data import names
from negvae.negatives import auxiliary_names, parse
from negvae.paper.published import OOD, ORDER, ROWS, TABLES, Published, cells, select_settings, select_tables, settings


def test_every_printed_figure_is_there():
    counts = {name: sum(len(cell.paper) for cell in table.cells) for name, table in TABLES.items()}
    assert counts == {"table1": 16, "table2": 20, "table3": 24, "table4": 24, "table5": 20, "noise": 2, "sigma": 0}
    assert set(ORDER) == set(TABLES)
    assert all(cell.paper.keys() <= ROWS.keys() for cell in cells().values())


@pytest.mark.parametrize(
    ("cell", "row", "expected"),
    [
        ("table1/mnist/bernoulli", "nats_per_dim_ood", (1.36, 0.03)),
        ("table2/cifar10/quantized-gaussian", "auc_bpd", (0.19, 0.0)),
        ("table3/gaussian/generated", "nats_per_dim_ood", (42.40, 76.21)),
        ("table3/bernoulli/generated", "auc_kl", (0.88, 0.07)),
        ("table4/gaussian/generated", "nats_per_dim_ood", (4.43, 2.30)),
        ("table5/uniform-noise", "nats_per_dim_ood", (0.32, 0.04)),
        ("table5/generated", "auc_kl", (0.89, 0.08)),
        ("noise/added-noise:0.25", "auc_kl", (0.70, 0.09)),
    ],
)
def test_figures_as_printed(cell, row, expected):
    assert cells()[cell].paper[row][:2] == expected


def test_powers_of_ten():
    assert cells()["table5/generated"].paper["nats_per_dim_ood"] == Published(1e18, 1e19, power=True)


def test_runs_are_shared_between_tables():
    assert len(cells()) == 28
    assert len(settings()) == 23
    shared = [
        cells()[name].setting for name in ("table3/bernoulli/none", "table5/none", "table1/fashion-mnist/bernoulli")
    ]
    assert len(set(shared)) == 1
    pair = cells()["table3/bernoulli/generated"], cells()["table5/generated"]
    assert pair[0].setting == pair[1].setting
    assert pair[0].paper != pair[1].paper


def test_names_mean_something():
    for setting in settings().values():
        assert {setting.data, OOD[setting.data], *auxiliary_names(setting.negatives)} <= set(names())
        assert parse(setting.negatives) or setting.negatives == "none"
    assert [cell.ood for cell in TABLES["table2"].cells] == ["svhn"] * 3 + ["cifar10"] * 2


def test_selection():
    assert [table.name for table in select_tables("all")] == list(TABLES)
    assert select_settings("all")[0] == cells()["table3/bernoulli/none"].setting
    assert len(select_settings("all")) == 23
    assert [s.negatives for s in select_settings("table5", ["table5/kmnist"])] == ["kmnist"]
    run = "fashion-mnist-bernoulli-kmnist"
    assert [s.name for s in select_settings("table5", ["table5/kmnist", run])] == [run]
    with pytest.raises(ValueError, match="did you mean table3"):
        select_tables("tabel3")
    with pytest.raises(ValueError, match=r"Known: table5/none.*fashion-mnist-bernoulli-kmnist"):
        select_settings("table5", ["table5/kmnits"])
