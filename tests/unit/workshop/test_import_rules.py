"""The import rules of pyproject.toml bite: each breach below makes lint-imports fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CLEAN = {
    "headrace/__init__.py": "",
    "headrace/errors.py": "",
    "headrace/cli/__init__.py": "",
    "headrace/cli/serve.py": "def serve():\n    import headrace_server.app\n",
    "headrace_server/__init__.py": "",
    "headrace_server/app.py": "import headrace.errors\nimport headrace_server.relay\n",
    "headrace_server/relay.py": "",
    "headrace_runner/__init__.py": "",
    "headrace_runner/app.py": "import headrace.errors\nimport mlx.core\n",
}


def lint(directory: Path, files: dict[str, str]) -> subprocess.CompletedProcess[str]:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return subprocess.run(
        [
            Path(sys.executable).parent / "lint-imports",
            *("--config", ROOT / "pyproject.toml", "--no-cache", "--no-logo"),
        ],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_clean_packages_pass(tmp_path: Path) -> None:
    done = lint(tmp_path, CLEAN)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("breach", "broken"),
    [
        ({"headrace_server/relay.py": "import mlx.core\n"}, "knows neither MLX nor the runner"),
        ({"headrace_server/relay.py": "import mlx_lm\n"}, "knows neither MLX nor the runner"),
        (
            {"headrace_server/relay.py": "def late():\n    import headrace_runner.app\n"},
            "knows neither MLX nor the runner",
        ),
        ({"headrace/errors.py": "import mlx.core\n"}, "knows neither MLX nor the services"),
        ({"headrace/errors.py": "import headrace_server\n"}, "knows neither MLX nor the services"),
        ({"headrace_runner/app.py": "import headrace_server\n"}, "does not know the controller"),
        (
            {"headrace_server/relay.py": "import headrace_server.app\n"},
            "controller imports go down",
        ),
        ({"headrace_runner/models.py": "import headrace_runner.app\n"}, "runner imports go down"),
        (
            {
                "headrace/errors.py": "import headrace.rpc\n",
                "headrace/rpc.py": "import headrace.errors\n",
            },
            "No cycles",
        ),
    ],
)
def test_a_breach_fails(tmp_path: Path, breach: dict[str, str], broken: str) -> None:
    done = lint(tmp_path, CLEAN | breach)

    assert done.returncode == 1
    assert any(broken in line and "BROKEN" in line for line in done.stdout.splitlines())
