"""Compare what is installed with known vulnerabilities, by pip-audit: `python benchmarks/audit.py SITE-PACKAGES`.

Run by a Python that has pip-audit. The exit code says what came of it:

    0   the index of advisories knows no vulnerability of any package
    1   it knows some; they are listed
    2   it could not run: no folder is named, or this Python has no pip-audit
    3   no index was reached: nothing is known, and nothing was audited
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CLEAN, VULNERABLE, FAILED, UNREACHED = 0, 1, 2, 3
TOOL = "pip_audit"


def audit(place: str) -> tuple[int, list[str]]:
    """Audit the packages of a folder.

    Args:
        place: folder of the installed packages.

    Returns:
        The exit code, and the lines to print.
    """
    command = [sys.executable, "-m", TOOL, "--path", place, "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = (done.stderr.strip().splitlines() or [f"pip-audit ended with {done.returncode}"])[-1]
        if f"No module named {TOOL}" in reason:
            return FAILED, [f"pip-audit is not installed in {sys.executable}: run make audit"]
        return UNREACHED, ["The index of advisories was not reached: nothing was audited. Run this where there is a"
                           " connection to it.", f"pip-audit: {reason[:300]}"]  # fmt: skip
    skipped = [f"{package['name']}: not audited ({package['skip_reason']})"
               for package in packages if "skip_reason" in package]  # fmt: skip
    found = [f"{package['name']} {package['version']}: {fault['id']}, mended in"
             f" {', '.join(fault['fix_versions']) or 'no version'}"
             for package in packages for fault in package.get("vulns", ())]  # fmt: skip
    if packages and len(skipped) == len(packages):
        return UNREACHED, [f"None of {len(packages)} packages was audited: the index in reach has no advisories.",
                           f"The first: {skipped[0]}"]  # fmt: skip
    audited = f"{len(packages) - len(skipped)} packages audited, {len(found)} vulnerabilities known"
    return VULNERABLE if found else CLEAN, [*skipped, *found, audited]


def main() -> int:
    """Print what is known of the packages in the folder that is named."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print("name one folder of installed packages: python benchmarks/audit.py SITE-PACKAGES")
        return FAILED
    code, lines = audit(sys.argv[1])
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
