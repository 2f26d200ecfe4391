"""Which negvae this is: its version, and the commit of a source checkout. Imports no torch."""

from __future__ import annotations

import subprocess
from pathlib import Path

import negvae

UNKNOWN = "unknown"
"""What stands for the commit where the source is no checkout, as in an installed wheel."""


def described_version() -> str:
    """Return the version, followed by the commit in parentheses where the source is a git checkout.

    >>> described_version().startswith(negvae.__version__)
    True
    """
    commit = source_commit()
    return negvae.__version__ if commit == UNKNOWN else f"{negvae.__version__} (commit {commit})"


def source_commit() -> str:
    """Return the git commit of the source in use, marked if the source was changed; "unknown" outside a checkout."""
    root = Path(negvae.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return UNKNOWN
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", "src"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return head.stdout.strip() + (" with uncommitted changes" if changed.stdout.strip() else "")
