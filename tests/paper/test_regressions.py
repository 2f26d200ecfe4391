"""Regressions: what the tables say was trained, and what a runner finds in its folders."""

import io
import os

import pytest
import yaml
from rich.console import Console

from negvae.paper.profiles import PROFILES
from negvae.paper.published import TABLES, settings
from negvae.paper.reproduction import data_table, latex, markdown
from negvae.paper.runner import Plan, run_plan
from negvae.paper.show import as_json, gather, label, negatives_label, remarks, show_table

BASELINE = settings()["fashion-mnist-bernoulli-none"]


@pytest.mark.parametrize("profile", [PROFILES["paper"], PROFILES["cpu"]], ids=["paper", "cpu"])
def test_every_table_names_the_negatives_that_the_runs_are_trained_with(profile, tmp_path):
    found = gather(TABLES.values(), profile, tmp_path)
    entries = as_json(found, profile)
    for cell in (cell for table in TABLES.values() for cell in table.cells):
        own = profile.config(cell.setting).negatives
        result, text = found[cell.name], negatives_label(own)
        assert result.negatives == own
        assert {e["negatives"] for e in entries if e["train"] == cell.setting.data and e["table"] == cell.table
                and e["likelihood"] == cell.setting.likelihood and e["paper_negatives"] == cell.setting.negatives
                } == {own}  # fmt: skip
        if cell.setting.negatives in cell.name.split("/"):
            assert label(result).endswith(text)
        if own != cell.setting.negatives:
            assert any(f"trained with {text}, where the paper has" in line for line in remarks([result], profile))
    for table in TABLES.values():
        header = data_table(table, found).header[1:]
        assert list(header) == [label(found[cell.name]) for cell in table.cells]
        output = io.StringIO()
        Console(file=output, width=400).print(show_table(table, found))
        for cell in table.cells:
            assert negatives_label(found[cell.name].negatives) in output.getvalue()
    if profile.name == "cpu":
        for page in (markdown(found, profile), latex(found, profile)):
            assert "ImageNet 32x32, half enlarged" in page


def test_a_run_that_a_later_version_wrote_is_not_touched(tmp_path, gray_sets, smoke):
    plan = Plan("smoke", ((BASELINE, 0),), tmp_path / "results", tmp_path / "work", "cpu")
    place = plan.work / "smoke" / "fashion-mnist-bernoulli-none-seed0"
    place.mkdir(parents=True)
    (place / "config.yaml").write_text(yaml.safe_dump({"format": 99, "run": {}}) + "...\n")
    (place / "weights.safetensors").write_bytes(b"theirs")
    with open(os.devnull, "w") as nowhere:
        outcome = run_plan(plan, console=Console(file=nowhere))
    assert outcome.done == 0
    assert "upgrade negvae" in outcome.failed["fashion-mnist-bernoulli-none-seed0"]
    assert sorted(os.listdir(place)) == ["config.yaml", "weights.safetensors"]
    assert (place / "weights.safetensors").read_bytes() == b"theirs"


def test_a_run_with_other_settings_is_set_aside_and_not_deleted(tmp_path, gray_sets, smoke):
    plan = Plan("smoke", ((BASELINE, 0),), tmp_path / "results", tmp_path / "work", "cpu")
    with open(os.devnull, "w") as nowhere:
        run_plan(plan, console=Console(file=nowhere))
        smoke(gray={"learning_rate": 0.002})
        assert run_plan(plan, console=Console(file=nowhere)).done == 1
    places = [name for name in os.listdir(plan.work / "smoke") if not name.endswith(".lock")]
    assert sorted(places) == [
        "fashion-mnist-bernoulli-none-seed0",
        "fashion-mnist-bernoulli-none-seed0.before-1",
    ]
    assert "weights.safetensors" in os.listdir(plan.work / "smoke" / "fashion-mnist-bernoulli-none-seed0.before-1")
