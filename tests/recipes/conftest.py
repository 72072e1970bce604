"""Scripts of recipes/, run in this process, which has loaded torch already."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a script, named below recipes/, as `python` does; returns its exit code, output and errors."""

    def run_script(script: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(RECIPES / script), run_name="__main__")
        return ended.value.code, *capfd.readouterr()

    return run_script
