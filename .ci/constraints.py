"""Prints constraints.txt: the versions, in the environment of this Python, of what the tests use.

    newest=yes PYTHON=python3.11 .ci/run
    .venv/bin/python .ci/constraints.py > constraints.txt

The first command installs the newest versions and runs every check with them. Python 3.11 is the
oldest that jaxconv supports, so that the versions exist for all.
"""

import configparser
import importlib.metadata
import re
import sys
from pathlib import Path

# Installed by .ci/run besides the extra [test].
MORE = ("torch", "torchvision", "timm", "pyyaml", "wandb", "mlflow-skinny", "sqlalchemy", "alembic")
# Newer versions of these need a newer Python than 3.11; there the tests run with the newest.
FOR_3_11 = ("jax", "jaxlib", "flax")
# Of accelerators, which the tests do not have.
LEFT_OUT = ("cuda", "tpu")
MARKER = '; python_version < "3.12"'
HEAD = """\
# The versions that the tests are known to pass with, used by ./test.sh and .ci/run; setup.cfg has
# the oldest that jaxconv takes.
# Made by .ci/constraints.py, which says how to renew it.
"""


def names() -> list[str]:
    """The packages of setup.cfg and of .ci/run, sorted."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(Path(__file__).resolve().parents[1] / "setup.cfg")
    extras = parser["options.extras_require"]
    texts = [parser["options"]["install_requires"]]
    texts += [text for extra, text in extras.items() if extra not in LEFT_OUT]
    found = re.findall(r"^\s*([\w.-]+)", "\n".join(texts), re.MULTILINE)
    return sorted({*found, *MORE, "jaxlib"} - {"jaxconv"}, key=str.lower)


def main() -> int:
    """Print the file; 1 if a package is missing."""
    lines, missing = [], []
    for name in names():
        try:
            version = importlib.metadata.version(name).partition("+")[0]
            lines.append(f"{name}=={version}" + (MARKER if name in FOR_3_11 else ""))
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        print(f"not installed: {', '.join(missing)}", file=sys.stderr)
        return 1
    print(HEAD + "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
