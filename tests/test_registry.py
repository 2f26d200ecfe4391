"""Tables of named parts: lookup, lazy targets, duplicates and plugins."""

import math
import sys

import pytest

from negvae import registry
from negvae.registry import Entry, Table


@pytest.fixture
def table():
    return Table("color", [Entry(name="red", meaning="of roses", target=1), Entry(name="blue", meaning="", target=2)])


def test_parts_are_found_by_name_and_in_order(table):
    assert list(table) == ["red", "blue"]
    assert (table["red"].load(), table["red"].meaning) == (1, "of roses")
    assert "red" in table
    assert "green" not in table
    assert [entry.target for entry in table.entries()] == [1, 2]
    assert len(table) == 2


def test_a_target_is_imported_when_it_is_used():
    entry = Entry(name="root", meaning="", target="math:isqrt")
    assert entry.load() is math.isqrt
    missing = Entry(name="gone", meaning="", target="no_such_module:thing")
    with pytest.raises(ModuleNotFoundError):
        missing.load()


def test_unknown_and_duplicate_names_are_errors(table):
    with pytest.raises(ValueError, match="unknown color 'rad': did you mean red"):
        table["rad"]
    with pytest.raises(ValueError, match="color 'red' is registered already"):
        table.add(Entry(name="red", meaning="", target=3))


def test_objects_find_their_names(table):
    table.add(Entry(name="root", meaning="", target="math:isqrt"))
    assert [table.name_of(part) for part in (2, math.isqrt, math.sqrt, lambda: 0)] == ["blue", "root", None, None]


def test_a_plugin_that_fails_is_named(table, monkeypatch, tmp_path):
    (tmp_path / "negvae_broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "negvae_broken-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: negvae-broken\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[negvae]\nbad = negvae_broken\n")
    registry._import_plugins.cache_clear()
    with pytest.raises(ImportError, match=r"the plugin bad = negvae_broken .* cannot be imported: division by zero"):
        table["green"]
    assert table["red"].load() == 1


def test_a_plugin_is_imported_only_where_a_name_is_not_known(table, monkeypatch, tmp_path):
    (tmp_path / "negvae_colors.py").write_text("import tests.test_registry as here\nhere.register()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "negvae_colors-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: negvae-colors\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[negvae]\ncolors = negvae_colors\n")
    registry._import_plugins.cache_clear()
    monkeypatch.setattr(sys.modules[__name__], "register", lambda: table.add(Entry(name="green", meaning="", target=5)))
    assert table["red"].load() == 1
    assert "negvae_colors" not in sys.modules
    assert table["green"].load() == 5
    assert "negvae_colors" in sys.modules
    registry._import_plugins.cache_clear()


def register():
    """What the plugin calls."""
