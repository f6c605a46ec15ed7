"""The four rules of the house, kept by a test: imports go one way, files stay small, what can be set is documented."""

import ast
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from server.settings import Settings, variable

ROOT = Path(__file__).parent.parent
PACKAGES = ("server", "pipelines", "storage")
MAX_LINES = 300

# What each package may not import. The same libraries belong to one package each.
FORBIDDEN = {
    "server": {"torch", "diffusers", "transformers", "safetensors", "sqlmodel", "sqlalchemy", "aiosqlite", "alembic"},
    "pipelines": {"server", "storage", "litestar", "uvicorn", "sqlmodel", "sqlalchemy", "aiosqlite", "asyncio"},
    "storage": {"server", "pipelines", "litestar", "uvicorn", "torch", "diffusers", "transformers"},
}
# `darkroom doctor` reports the libraries' versions, so it has to ask them.
EXCEPTIONS = {
    ("server/inspection.py", "torch"),
    ("server/inspection.py", "diffusers"),
    ("server/inspection.py", "transformers"),
}

SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """The top-level packages that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    broken = imports(path) & FORBIDDEN[name.split("/")[0]]
    assert {library for library in broken if (name, library) not in EXCEPTIONS} == set()


def test_sources_stay_small_and_say_what_they_own() -> None:
    scripts = [path for path in (ROOT / "scripts").rglob("*.py") if "__pycache__" not in path.parts]
    for path in [*SOURCES, *scripts]:
        text = path.read_text()
        assert len(text.splitlines()) <= MAX_LINES, f"{path} has {len(text.splitlines())} lines"
        assert ast.get_docstring(ast.parse(text)), f"{path} does not open by saying what it owns"


def test_what_needs_no_torch_loads_none() -> None:
    modules = [
        "catalog",
        "checkpoint",
        "errors",
        "hashing",
        "headers",
        "models_toml",
        "infotext",
        "request",
        "samplers",
    ]
    modules += ["sizes", "sources"]
    code = f"import sys\nfor name in {modules}: __import__('pipelines.' + name)\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    for field in fields(Settings):
        row = next((line for line in text.splitlines() if f"`{variable(field.name)}`" in line), None)
        assert row is not None, f"docs/settings.md does not name {variable(field.name)}"
        if field.default != "":
            assert f"`{field.default}`" in row, f"docs/settings.md gives another default for {variable(field.name)}"


def test_every_setting_is_read_somewhere() -> None:
    sources = "\n".join(path.read_text() for path in SOURCES if path.name != "settings.py")
    for field in fields(Settings):
        assert f"settings.{field.name}" in sources, f"nothing reads {variable(field.name)}"


def test_every_command_is_documented() -> None:
    from server.cli import main

    text = (ROOT / "README.md").read_text()
    for command in main.commands:
        assert f"darkroom {command}" in text


def test_the_top_level_is_as_agreed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    allowed = {"pyproject.toml", "server", "pipelines", "models.toml", "storage", "tests", "scripts", "Dockerfile.cuda"}
    allowed |= {"README.md", "CHANGELOG.md", "LICENSE", "requirements.lock", "docs"}
    top = {name.split("/")[0] for name in tracked.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= allowed
