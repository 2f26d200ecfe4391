"""The demo on small sets: one table, in a terminal and on the page."""

import json

import pytest
from rich.console import Console

from negvae.cli.progress import training_progress
from negvae.paper.demo import run_demo
from tests.report.conftest import Reader


def test_the_demo_writes_a_summary_and_a_page(gray_sets, tmp_path):
    console = Console(width=200, record=True)
    run_demo(tmp_path / "demo", quick=True, console=console, show_progress=training_progress)
    rows = json.loads((tmp_path / "demo/summary.json").read_text())["rows"]
    assert [row["negatives"] for row in rows] == ["none", "augmented"]
    page = Reader((tmp_path / "demo/report.html").read_text())
    printed = console.export_text()
    for row in rows:
        assert f"{row['nats_per_dim_ood']:.3f}" in page.text
        assert f"{row['nats_per_dim_ood']:.3f}" in printed
    assert len(page.all("figure", "plot")) == len(page.all("svg")) == 2 * 3  # two scores and the ROC of each model
    assert len(page.all("figure", "pixels")) == 5 + 6  # negatives only where there are any
    assert "0.46 (0.05)" in page.text
    assert "Negatives: augmented" in page.text


def test_nothing_of_another_s_is_deleted(gray_sets, tmp_path):
    out = tmp_path / "runs"
    (out / "none").mkdir(parents=True)
    (out / "none/config.yaml").write_text("mine")
    with pytest.raises(ValueError, match="holds something that no demo made"):
        run_demo(out, quick=True, console=Console(quiet=True), show_progress=training_progress)
    assert (out / "none/config.yaml").read_text() == "mine"
