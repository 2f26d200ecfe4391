"""The pages of the documentation: links, order, what they list, and the commands that a reader will type."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import typer

import negvae
from negvae.cli.app import app
from tests.cli.test_commands import call

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def name(page):
    return page.relative_to(ROOT).as_posix()


def without_code(text):
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.M | re.S)


def anchors(page):
    """The anchors that GitHub and MyST make of a page's headings."""
    headings = re.findall(r"^#{1,6} (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in filter(None, (found for pair in LINK.findall(without_code(page.read_text())) for found in pair)):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def toctree(page):
    for entry in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.S):
        for line in entry.splitlines():
            if line.strip() and not line.startswith(":"):
                yield (page.parent / f"{line.strip()}.md").relative_to(DOCS).as_posix()


def test_a_newcomer_reads_in_order():
    order = list(toctree(DOCS / "index.md"))
    assert order[:3] == ["install.md", "first-guard.md", "guarantees.md"]
    wanted = ["negatives.md", "idea.md", "reproduction.md", "benchmarks.md", "reference/index.md", "decisions.md"]
    assert [page for page in order if page in wanted] == wanted
    assert order[-1] == "notes/index.md"
    listed = {*order, *toctree(DOCS / "notes" / "index.md"), *toctree(DOCS / "reference" / "index.md"), "index.md"}
    assert listed == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


def test_every_extra_is_explained():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = re.findall(r"^\| `([\w-]+)` \|", (DOCS / "install.md").read_text(), re.M)
    assert table == sorted(extras)


def test_nothing_comes_from_elsewhere():
    settings = (DOCS / "conf.py").read_text()
    assert not re.search(r"https?://(?!docs\.python)", settings), "a font, script or image of another site"


def test_pictures_are_small():
    pictures = [*(DOCS / "pictures").glob("*.png"), DOCS / "demo.png"]
    assert len(pictures) > 1
    assert {path.name: path.stat().st_size for path in pictures if path.stat().st_size > 300_000} == {}


def commands(page):
    """Every line of the page's shell blocks that begins with negvae, without its comment."""
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.M | re.S):
        if language in ("sh", "console", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                for start in [0, *(place + 1 for place, word in enumerate(words) if word == "|")]:
                    if words[start : start + 1] == ["negvae"]:
                        yield words[start + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_options_exist(page):
    """Commands are parsed, not run: most need data, minutes, a service or a cluster that a test has not."""
    for words in commands(page):
        command, context = typer.main.get_command(app), None
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            context = click.Context(command, context)
            assert words[0] in command.commands, words
            command, words = command.commands[words[0]], words[1:]
        if isinstance(command, click.Group):
            continue
        try:
            command.make_parser(click.Context(command, context)).parse_args([word for word in words if word != "-h"])
        except click.UsageError as error:
            raise AssertionError(f"negvae {' '.join(words)}: {error.message}") from None


QUICK = ["--epochs", "1", "--batch-size", "16", "--side", "16", "--fit", "resize"]
"""What makes the training of docs/first-guard.md a matter of seconds."""


@pytest.mark.filterwarnings("ignore:.*held-out inliers")
def test_the_first_guard_from_photos_to_a_threshold(capsys, tmp_path, monkeypatch):
    """All commands of the page, in order, on fewer and smaller photos and with a short training."""
    from examples import make_photos

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["make_photos.py", ".", "--photos", "60", "--width", "80"])
    make_photos.main()
    assert len(list(Path("inbox").iterdir())) == 32
    for words in commands(DOCS / "first-guard.md"):
        code, _, error = call(capsys, *words, *(QUICK if words[0] == "train" else []))
        assert code == 0, f"negvae {' '.join(words)}: {error}"
    assert Path("scores.csv").read_text().count("\n") == 33


def test_examples_name_the_scores_that_have_moved_alone():
    """`moved` of a drift has all comparisons, those that found nothing among them."""
    lines = [line for page in PAGES for line in page.read_text().splitlines()]
    named = [line for line in lines if re.search(r"\b(drift\([^)]*\)|found)\.moved\b", line)]
    assert len(named) >= 2
    assert [line for line in named if "if each.moved" not in line] == []


def test_the_reference_has_every_public_name():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "reference").glob("*.md")))
    single, modules = (
        set(re.findall(rf"^\.\. auto(?:{kind}):: (\S+)$", pages, re.M)) for kind in ("class|function", "module")
    )
    missing = []
    for public in set(negvae.__all__) - {"__version__"}:
        home = getattr(negvae, public).__module__
        if f"negvae.{public}" not in single and home not in modules:
            missing.append(public)
    assert not missing
