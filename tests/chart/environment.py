"""A virtual environment with the tools that check and render the chart: `enter()` continues inside it."""

import os
import subprocess
import sys
import venv

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CHART = os.path.join(ROOT, "examples/chart")
NEEDED = ["helm-python-sdk==0.2.2", "kubernetes-validate==1.37.0", "cel-python==0.5.0", "PyYAML>=6"]
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
VENV = os.environ.get("CHART_VENV", os.path.join(TARGET, "chart-venv"))


def enter():
    """Starts the program again in the environment, which is created if it does not exist. Exits with 3 if it cannot be created."""
    if os.environ.get("CHART_INSIDE") == VENV:
        return
    python = os.path.join(VENV, "bin/python")
    mark = os.path.join(VENV, "installed")
    if not (os.path.exists(mark) and open(mark).read() == "\n".join(NEEDED)):
        try:
            venv.create(VENV, with_pip=True, clear=True)
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run(pip + NEEDED, check=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"CANNOT CHECK THE CHART: {' '.join(NEEDED)} cannot be installed: {error}", file=sys.stderr)
            sys.exit(3)
        open(mark, "w").write("\n".join(NEEDED))
    os.environ["CHART_INSIDE"] = VENV
    os.execv(python, [python, os.path.abspath(sys.argv[0]), *sys.argv[1:]])
