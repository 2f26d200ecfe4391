"""The demo on small sets: one table, in a terminal and on the page."""

import json

import pytest
import torch
from rich.console import Console

from negvae.cli.progress import training_progress
from negvae.config import preset
from negvae.paper import demo, demo_plan
from negvae.paper.demo import run_demo
from negvae.paper.demo_plan import measure, plan
from tests.conftest import SHAPES, blobs
from tests.report.conftest import Reader


def test_the_demo_writes_a_summary_and_a_page(gray_sets, tmp_path, monkeypatch):
    console, threads = Console(width=200, record=True), torch.get_num_threads()
    monkeypatch.setattr(demo, "measure", lambda config, images: (1000.0, threads + 1))
    run_demo(tmp_path / "demo", quick=True, console=console, show_progress=training_progress)
    summary = json.loads((tmp_path / "demo/summary.json").read_text())
    rows = summary["rows"]
    assert (summary["provenance"]["threads"], torch.get_num_threads()) == (threads + 1, threads)
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
    (tmp_path / "demo/summary.json").write_text("a person's")
    with pytest.raises(ValueError, match=r"demo holds summary\.json, which was changed since a demo made it"):
        run_demo(tmp_path / "demo", quick=True, console=console, show_progress=training_progress)
    assert (tmp_path / "demo/summary.json").read_text() == "a person's"


def test_a_slow_machine_gets_a_smaller_demo_of_the_length_that_is_announced():
    before = plan(1e6, 2, 3)
    assert before.whole
    for rate in (3000, 1000, 500, 250, 120):
        chosen = plan(rate, 1, 3)
        assert chosen.images * chosen.epochs <= before.images * before.epochs
        assert 15 + 3 * chosen.images * chosen.epochs / rate < chosen.seconds <= 225
        before = chosen
    assert (plan(1.0, 1, 3).images, plan(1e6, 2, 2, quick=True).images) == (3000, 12_000)
    assert "9,000 of 60,000 images for 2 epochs" in plan(300, 1, 3).describe(3)


def test_the_measurement_takes_the_better_number_of_threads(monkeypatch):
    monkeypatch.setattr(demo_plan, "SECONDS", 0.05)
    config = preset("gray", "fashion-mnist", negatives="augmented", batch_size=8)
    present = torch.get_num_threads()
    rate, threads = measure(config, blobs(16, SHAPES["gray"]))
    assert rate > 0
    assert threads in (1, present)
    assert torch.get_num_threads() == present


def test_nothing_of_another_s_is_deleted(gray_sets, tmp_path):
    out = tmp_path / "runs"
    (out / "none").mkdir(parents=True)
    (out / "none/config.yaml").write_text("mine")
    with pytest.raises(ValueError, match="holds something that no demo made"):
        run_demo(out, quick=True, console=Console(quiet=True), show_progress=training_progress)
    assert (out / "none/config.yaml").read_text() == "mine"
