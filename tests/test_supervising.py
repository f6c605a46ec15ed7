"""The supervisor: what ends for good stays ended, what crashed is started anew, signals are passed on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.supervising import command_of

SUPERVISOR = "import sys; from server.supervising import Supervisor; sys.exit(Supervisor(sys.argv[1:], 0.01).run())"
COUNTING = """
import pathlib, sys, os, signal
place = pathlib.Path(sys.argv[1])
place.write_text(place.read_text() + "x")
ends = sys.argv[2].split(",")
end = ends[len(place.read_text()) - 1]
if end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if end == "waits":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    place.with_name("ready").touch()
    signal.pause()
sys.exit(int(end))
"""


def supervised(tmp_path: Path, ends: str) -> subprocess.Popen[bytes]:
    (tmp_path / "starts").touch()
    child = [sys.executable, "-c", COUNTING, str(tmp_path / "starts"), ends]
    return subprocess.Popen([sys.executable, "-c", SUPERVISOR, *child])


@pytest.mark.parametrize(
    ("ends", "code", "starts"), [("70,killed,70,0", 0, 4), ("1", 1, 1), ("2", 2, 1), ("70,1", 1, 2)]
)
def test_only_what_may_go_better_is_started_anew(tmp_path: Path, ends: str, code: int, starts: int) -> None:
    assert supervised(tmp_path, ends).wait(30) == code
    assert len((tmp_path / "starts").read_text()) == starts


def test_a_signal_is_passed_on_and_ends_both(tmp_path: Path) -> None:
    running = supervised(tmp_path, "70,waits")
    while not (tmp_path / "ready").exists():
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 0
    assert len((tmp_path / "starts").read_text()) == 2


def test_the_command_is_this_python_s_own() -> None:
    help_text = subprocess.run([*command_of([]), "--help"], capture_output=True, text=True, check=True, env=os.environ)
    assert "--supervise" in help_text.stdout
