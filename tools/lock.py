"""Writes requirements.lock: the versions that a fresh install of every extra resolves to today.

Nothing is installed. Run it through `make lock`, with Python 3.11 or 3.12: grakel has no wheel for
3.13.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# What every extra of attention-core resolves to, as constraints: pip install -c requirements.lock
# Written by `make lock`. The platform's own packages (CUDA, triton) follow from torch.
"""
# Torch requires exact versions of these itself, other ones on other platforms.
PLATFORM = re.compile(r"^(nvidia|cuda|triton|pytorch-triton)(-|$)")


def resolve() -> dict[str, str]:
    """Name to version, over the whole closure of `attention-core[all]`."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report), f"{ROOT}[all]"]
        subprocess.run(command, check=True)
        items = json.loads(report.read_text())["install"]
    return {item["metadata"]["name"]: item["metadata"]["version"] for item in items}


def main() -> None:
    if sys.version_info >= (3, 13):
        sys.exit("make lock: every extra is needed, and grakel has no wheel for Python 3.13.")
    versions = {}
    for name, version in resolve().items():
        name = re.sub(r"[-_.]+", "-", name).lower()
        if name == "attention-core" or PLATFORM.match(name):
            continue
        # A local version such as 2.15.0+cpu names one index's build.
        versions[name] = version.partition("+")[0]
    lines = [f"{name}=={versions[name]}\n" for name in sorted(versions)]
    (ROOT / "requirements.lock").write_text(HEADER + "".join(lines))
    print(f"requirements.lock: {len(lines)} packages")


if __name__ == "__main__":
    main()
