"""What README.md tells a reader to type works, and every link in the documents leads somewhere."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import msgspec
import pytest
from PIL import Image

from pipelines.families import family_facts
from pipelines.models_toml import load_catalog
from server.settings import Settings
from tests.conftest import Server
from tests.test_cli import variables

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

DEMO_WEIGHTS = ROOT / "pipelines" / "demo" / "demo-sdxl" / "unet"
DEMO_PICTURES = {ROOT / "docs" / "demo-sdxl.png", ROOT / "docs" / "demo-sd3.png"}
"""Drawn by the demo checkpoints, so they may be missing for as long as the weights are, and not a day longer."""


def fenced(language: str, containing: str) -> str:
    """The README's one block of a language that contains some words."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if containing in block]
    return str(found)


def test_the_curl_line_makes_a_picture_that_can_be_fetched(server: Server) -> None:
    words = shlex.split(fenced("sh", "curl").replace("\\\n", " "))
    (address,) = [word for word in words if word.startswith("http")]
    default = f"http://{Settings().host}:{Settings().port}"
    assert address.startswith(default + "/"), "a server started without settings must hear it"
    header, value = words[words.index("-H") + 1].split(": ")
    body = msgspec.json.decode(words[words.index("-d") + 1])
    body.pop("model", None)  # the session's server has no demo checkpoint; its default model answers
    answer = httpx.post(
        server.url + address.removeprefix(default),
        content=msgspec.json.encode(body),
        headers={header: value},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    picture = httpx.get(answer.json()["data"][0]["url"], timeout=60)
    assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")


def test_the_generate_line_writes_its_file(checkpoints: Path, tmp_path: Path) -> None:
    (line,) = re.findall(r"`\.venv/bin/darkroom (generate [^`]+)`", README)
    arguments = shlex.split(line)
    done = subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env=variables(checkpoints),
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / arguments[arguments.index("-o") + 1]) as picture:
        assert picture.format == "PNG"


def test_the_example_of_models_toml_is_a_catalogue(tmp_path: Path) -> None:
    example = fenced("toml", "[models.")
    (tmp_path / "models.toml").write_text(example, encoding="utf-8")
    catalog = load_catalog(tmp_path / "models.toml", family_facts())
    assert set(catalog.entries) == set(tomllib.loads(example)["models"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(document: Path) -> None:
    written = re.findall(r'\]\(([^)\s]+)|(?:src|href)="([^"]+)"', document.read_text(encoding="utf-8"))
    targets = [markdown or tag for markdown, tag in written]
    relative = [target.partition("#")[0] for target in targets if not re.match(r"[a-z][a-z0-9+.-]*:|#", target)]
    missing = {path for target in relative if not (path := (document.parent / target).resolve()).exists()}
    excused = set() if DEMO_WEIGHTS.exists() else {path.resolve() for path in DEMO_PICTURES}
    assert missing - excused == set()
