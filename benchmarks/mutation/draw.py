"""Draw mutants with cosmic-ray, into a JSON file; run by a Python that has cosmic-ray, and nothing of this package.

A place is an operator, a number, a keyword or the like at a position of a file, outside of annotations; places are
drawn without repetition, each as likely as any other, and one of the mutants that cosmic-ray has for it is taken.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import random
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import cosmic_ray.plugins as plugins  # type: ignore[import-not-found]
from cosmic_ray.ast import ast_nodes, get_ast  # type: ignore[import-not-found]
from cosmic_ray.mutating import mutate_code  # type: ignore[import-not-found]

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "negvae"
SUBJECT = ("model", "negatives", "training/objectives.py", "scoring")
LEFT_OUT = ("VariableReplacer", "VariableInserter", "RemoveDecorator")
"""Operators that make code at random, and one that removes `@dataclass`, without which nothing is imported."""
Place = tuple[str, tuple[int, int], str]


def files() -> list[Path]:
    """The files of which mutants are made."""
    places = [SOURCE / part for part in SUBJECT]
    return sorted(path for place in places for path in ([place] if place.is_file() else place.glob("*.py")))


def hidden_spans(text: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations begin and end: they are never evaluated."""
    spans = []
    for node in ast.walk(ast.parse(text)):
        for name in ("annotation", "returns"):
            if (part := getattr(node, name, None)) is not None:
                spans.append(((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)))
    return spans


def mutants_of(path: Path) -> Iterator[tuple[Place, str, int]]:
    """Every place of a file with the operators and occurrences of its mutants."""
    text = path.read_text()
    nodes, hidden = list(ast_nodes(get_ast(text))), hidden_spans(text)
    for name in plugins.operator_names():
        short = name.removeprefix("core/")
        if short in LEFT_OUT:
            continue
        operator = plugins.get_operator(name)()
        positions = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, start in enumerate(positions):
            if not any(begin <= start < end for begin, end in hidden):
                family = "_".join(short.split("_")[:2]) if short.startswith("Replace") else short
                yield (str(path.relative_to(SOURCE)), tuple(start), family), name, occurrence


def changed(path: Path, name: str, occurrence: int) -> tuple[str, list[str]] | None:
    """The file's text with a mutant, and its lines that differ; None where the text means the same, or nothing."""
    before = path.read_text()
    after = mutate_code(before, plugins.get_operator(name)(), occurrence)
    try:
        if after is None or ast.dump(ast.parse(after)) == ast.dump(ast.parse(before)):
            return None
    except SyntaxError:
        return None
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return after, [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def main() -> None:
    """Draw so many mutants, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    places: dict[Place, list[tuple[str, int]]] = {}
    for path in files():
        for place, name, occurrence in mutants_of(path):
            places.setdefault(place, []).append((name, occurrence))
    draw = random.Random(asked.seed)
    order, drawn = sorted(places), []
    draw.shuffle(order)
    for place in order:
        file, (line, column), _ = place
        name, occurrence = draw.choice(places[place])
        found = changed(SOURCE / file, name, occurrence)
        if found is not None:
            drawn.append({"file": file, "line": line, "column": column, "operator": name, "occurrence": occurrence,
                          "change": found[1], "text": found[0]})  # fmt: skip
        if len(drawn) == asked.number:
            break
    facts = {"tool": f"cosmic-ray {version('cosmic-ray')}", "seed": asked.seed, "places": len(places),
             "mutants": sum(map(len, places.values())),
             "subject": [f"src/negvae/{part}" for part in SUBJECT]}  # fmt: skip
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({**facts, "drawn": drawn}) + "\n")
    print(f"{len(drawn)} mutants of {facts['places']:,} places ({facts['mutants']:,} mutants): {asked.out}")


if __name__ == "__main__":
    main()
