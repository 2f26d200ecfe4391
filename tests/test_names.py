"""What is exported, and how it is called: programs of others rest on these names and signatures.

A change here is a change for them. Names may be added freely; what goes, or changes its arguments, is to be announced
in CHANGELOG.md, and then changed here.
"""

import inspect
import json
from pathlib import Path

import negvae
import negvae.detector
import negvae.scoring
from negvae.cli import app

KNOWN = Path(__file__).parent / "names.json"


def signature(thing):
    """The names of a callable's arguments, with a star before those that may be given by name only."""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return None
    return [("*" if p.kind is p.KEYWORD_ONLY else "") + p.name for p in parameters]


def found():
    """Every exported name with its arguments, the methods of the detector, and every command with its options."""
    names = {f"{module.__name__}.{name}": signature(getattr(module, name))
             for module in (negvae, negvae.detector, negvae.scoring) for name in module.__all__}  # fmt: skip
    own = [(name, method) for name, method in inspect.getmembers(negvae.NegVAEDetector, callable)
           if not name.startswith("_") and method.__module__.startswith("negvae.")]  # fmt: skip
    methods = {f"NegVAEDetector.{name}": signature(method) for name, method in own}
    commands = {f"negvae {command.callback.__name__}": signature(command.callback)
                for command in app.app.registered_commands}  # fmt: skip
    return {**names, **methods, **commands}


def test_no_name_and_no_argument_goes_unannounced():
    now = found()
    for name, arguments in json.loads(KNOWN.read_text()).items():
        assert name in now, f"{name} is gone"
        if arguments is not None:
            kept = [argument for argument in now[name] or [] if argument in arguments]
            assert kept == arguments, f"{name} takes {now[name]}, it took {arguments}"


if __name__ == "__main__":
    KNOWN.write_text(json.dumps(found(), indent=1) + "\n")
