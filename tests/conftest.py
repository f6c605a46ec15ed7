"""What every test may use: tiny checkpoints of the real architectures, an engine, and a real server on a real port."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
import uvicorn

from pipelines.catalog import Catalog
from pipelines.device import pick_device
from pipelines.engine import Engine
from pipelines.families import family_facts
from pipelines.models_toml import load_catalog
from server.app import create_app
from server.connections import http_config
from server.settings import Settings
from tests import tiny

CATALOG = """
[models.tiny-sdxl]
family = "sdxl"
source = "./sdxl"
size = "32x32"
steps = 4
aliases = ["gpt-image-1", "org/tiny"]
price = 0.25

[models.tiny-sd3]
family = "sd3"
source = "./sd3"
size = "32x32"
steps = 4
max_sequence_length = 16

[models.tiny-sd3-t5]
family = "sd3"
source = "./sd3-t5"
size = "32x32"
steps = 4
max_sequence_length = 16

[models.missing]
family = "sdxl"
source = "./nowhere"
"""


def pytest_configure() -> None:
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # tiny networks run no faster on more, and a busy machine makes the threads wait


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Figures that tests found and that people want to see, whichever process they ran in."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "told":
                terminalreporter.write_line(f"{report.nodeid}: {value}")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny checkpoints and a models.toml that names them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny.build_sdxl(folder / "sdxl")
    tiny.build_sd3(folder / "sd3")
    tiny.build_sd3(folder / "sd3-t5", t5=True)
    (folder / "models.toml").write_text(CATALOG)
    return folder


@pytest.fixture(scope="session")
def catalog(checkpoints: Path) -> Catalog:
    return load_catalog(checkpoints / "models.toml", family_facts())


@pytest.fixture(scope="session")
def engine() -> Engine:
    return Engine(pick_device("cpu"))


@dataclass(frozen=True)
class Server:
    """A running server: its address and its data folder."""

    url: str
    data: Path


@pytest.fixture(scope="session")
def server(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real application behind a real port, for the whole session."""
    with serving_models(catalog, tmp_path_factory.mktemp("data")) as running:
        yield running


@contextmanager
def serving_models(catalog: Catalog, data: Path) -> Iterator[Server]:
    """The real application with the real engine behind a real port."""
    settings = Settings(data=data, queue_limit=200)
    app = create_app(settings, catalog, lambda: Engine(pick_device("cpu")))
    instance = uvicorn.Server(http_config(app, settings.max_connections, port=0, lifespan="on"))
    thread = threading.Thread(target=lambda: asyncio.run(instance.serve()))
    thread.start()
    while not instance.started:
        assert thread.is_alive(), "the server did not start"
        threading.Event().wait(0.05)
    port = instance.servers[0].sockets[0].getsockname()[1]
    try:
        yield Server(f"http://127.0.0.1:{port}", data)
    finally:
        instance.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"
