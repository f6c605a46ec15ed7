"""`darkroom top`, run as a person runs it: its frame, its manners with the terminal, and a server that is not there."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ImageFailed
from pipelines.state import DeviceFacts
from server.identity.local_pass import write_pass
from server.top import Look, Style, frame
from tests.fake_server import PATIENCE, FakeServer, GatedEngine, calling, eventually, serving

PLAIN = Style(color=False, unicode=True)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeServer]:
    engine = GatedEngine(facts=DeviceFacts("A GPU", "cuda", "bfloat16", 80 * 10**9), memory_used=20 * 10**9)
    with serving(tmp_path / "data", engine) as running:
        running.post()
        yield running


def top(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "top", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"} | environment,
        cwd=Path(__file__).parent.parent,
    )


@pytest.mark.parametrize("columns", [80, 120])
def test_one_frame_shows_the_device_the_models_the_batch_and_the_line(fake: FakeServer, columns: int) -> None:
    fake.engine.failing_seeds[7] = ImageFailed("planted")
    fake.post(seed=7)
    fake.engine.gates["step"].close()
    with calling(fake, n=2, steps=8), calling(fake, model="other", priority=-3, steps=5):
        eventually(lambda: fake.queue == 3)
        assert fake.engine.gates["step"].reached.wait(PATIENCE)
        done = top("--once", "--url", fake.url + "/", COLUMNS=str(columns))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert "\x1b" not in done.stdout, "no terminal, no colours"
    for pattern in (
        r"^darkroom \S+  http://127.0.0.1:\d+$",
        r"^device  A GPU · cuda · bfloat16$",
        r"^memory  █{5}░{15} 20.0 GB of 80.0 GB$",
        r"^  fake\* +resident  64x64: 2 rows .* \(knee \d+, cap 16\)$",
        r"^  broken +absent$",
        r"^now     2 at work, 1 waiting · ",
        r"^minute  [\d.]+ pictures/s · 2.0 rows a step · waited ",
        r"^total   1 pictures · 1 failed · 0 refused$",
        r"^  denoising fake +64x64 +[█░]+ +0/8 ",
        r"^  #1 +other +64x64 +waited .* 0/5 .*p-3$",
    ):
        assert [line for line in lines if re.search(pattern, line)], f"{pattern}\n{done.stdout}"


def test_without_a_url_it_looks_where_a_server_of_this_environment_listens(fake: FakeServer, tmp_path: Path) -> None:
    done = top("--once", DARKROOM_PORT=str(fake.port), DARKROOM_DATA=str(tmp_path / "other"))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"  {fake.url}\n" in done.stdout


def test_without_a_url_it_looks_first_for_the_server_of_the_data_folder(fake: FakeServer, tmp_path: Path) -> None:
    write_pass(tmp_path / "other", fake.url)
    done = top("--once", DARKROOM_PORT="9", DARKROOM_DATA=str(tmp_path / "other"))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"  {fake.url}\n" in done.stdout


def test_ascii_where_the_output_knows_no_more(fake: FakeServer) -> None:
    done = top("--once", "--url", fake.url, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout.isascii()
    assert "#####---------------" in done.stdout


@pytest.mark.parametrize(
    ("url", "said", "code"),
    [
        ("http://127.0.0.1:9", "No server answers at http://127.0.0.1:9", 1),
        ("http://127.0.0.1:port/x", "Nothing is served under this address", 1),
        ("file:///etc", "must begin with http", 2),
    ],
)
def test_what_is_no_server_ends_with_a_line_that_says_so(fake: FakeServer, url: str, said: str, code: int) -> None:
    done = top("--once", "--url", url.replace("port", str(fake.port)))
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr and "Traceback" not in done.stderr


class Terminal:
    """`darkroom top` in a terminal of its own."""

    def __init__(self, url: str, **environment: str) -> None:
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self.slave, self.seen = slave, ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server", "top", "--url", url],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ
            | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24", "PYTHONIOENCODING": "utf-8"}
            | environment,
            cwd=Path(__file__).parent.parent,
            preexec_fn=_own_terminal,
        )

    def until(self, text: str, count: int = 1) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.seen.count(text) < count:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536).decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def _own_terminal() -> None:
    """In the child: Ctrl-C reaches whoever has the terminal for its own."""
    import fcntl

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.parametrize(("key", "code"), [("q", 0), ("\x03", 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_it_draws_again_and_leaves_the_terminal_as_it_was(fake: FakeServer, key: Any, code: int) -> None:
    terminal = Terminal(fake.url)
    try:
        terminal.until("q leaves", count=2)
        assert terminal.seen.startswith("\x1b[?1049h\x1b[?25l")
        assert "\x1b[32m" in terminal.seen, "colours"
        if isinstance(key, str):
            os.write(terminal.master, key.encode())
        else:
            terminal.process.send_signal(key)
        terminal.until("\x1b[?25h\x1b[?1049l")
        assert terminal.process.wait(PATIENCE) == code
        assert termios.tcgetattr(terminal.slave) == terminal.before
        assert "Traceback" not in terminal.seen
    finally:
        terminal.close()


def test_a_server_that_goes_away_is_told_and_waited_for(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as running:
        terminal = Terminal(running.url, NO_COLOR="1")
        terminal.until("q leaves")
    try:
        terminal.until("No server answers")
        os.write(terminal.master, b"q")
        assert terminal.process.wait(PATIENCE) == 0
        assert "\x1b[3" not in terminal.seen, "NO_COLOR"
    finally:
        terminal.close()


def look(images: int = 0, **model: Any) -> Look:
    image = {
        "position": 0,
        "stage": "waiting",
        "model": "m",
        "width": 1024,
        "height": 1024,
        "step": 0,
        "steps": 150,
        "priority": -10,
        "estimatedTimeRemaining": None,
        "waited": 5.0,
    }
    queue = {
        "queueLength": images,
        "processingCount": 0,
        "paused": False,
        "averageWaitTime": None,
        "estimatedProcessingTime": 0.0,
        "backlogSeconds": 7200.0,
        "recent": {"rowsPerStep": None, "picturesPerSecond": 0.0},
        "totals": {"pictures": 0, "failures": 0, "refusals": 0},
        "images": [image] * min(images, 100),
    }
    facts = {"name": "m", "default": False, "state": "absent", "loading": None, "weightBytes": None, "shapes": []}
    device = {"name": "d", "kind": "cpu", "dtype": "float32", "memoryBytes": None, "memoryUsedBytes": 5 * 10**8}
    return Look("http://x", queue, {"version": "1", "device": device, "models": [facts | model]})


def test_a_long_line_is_cut_to_the_terminal_and_counted() -> None:
    lines = frame(look(images=500), PLAIN, 80, 20)
    assert len(lines) <= 20
    shown = [line for line in lines if "#1 " in line]
    assert lines[-1] == f"  … and {500 - len(shown)} more"
    assert len(frame(look(images=5), PLAIN, 80, 3)) == 3, "a terminal too low for all of it"


def test_a_pause_is_shown_in_place_of_an_end() -> None:
    paused = look(images=5)
    assert any("· all done in 0 s ·" in line for line in frame(paused, PLAIN, 80))
    paused.queue.update(paused=True, estimatedProcessingTime=None)
    lines = [line for line in frame(paused, PLAIN, 80) if line.startswith("now")]
    assert lines == ["now     0 at work, 5 waiting · PAUSED · backlog 2 h"]


def test_a_load_is_shown_with_its_stage_and_share() -> None:
    loading = {"stage": "reading", "share": 0.45, "seconds": 12.0}
    assert any(
        re.search(r"loading   █+░+ reading 45%, 12.0 s$", line)
        for line in frame(look(state="loading", loading=loading, weightBytes=1), PLAIN, 80)
    )


def test_what_a_server_says_cannot_steer_the_terminal() -> None:
    lines = frame(look(images=1, name="\x1b]0;gotcha\x07" + "x" * 300), PLAIN, 80)
    assert not any("\x1b" in line or "\x07" in line for line in lines)
    assert max(map(len, lines)) <= 80
