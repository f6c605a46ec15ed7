"""What docs/operations.md promises to supervisors: its unit is one that systemd takes, its numbers are the code's."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipelines.fitting import CAP_SECONDS
from server.body import MAX_BODY_SECONDS, MAX_JSON_BYTES
from server.connections import FAREWELL_SECONDS, KEEP_ALIVE_SECONDS, MAX_HEAD_BYTES, MAX_MESSAGE_BYTES, ORDINARY
from server.jobs.backoff import ROOM_SECONDS
from server.scheduling.cost import FIRST_TIMES, LEAST_FIRST_SECONDS
from server.scheduling.models import LOAD_SECONDS
from server.scheduling.verbs import LEAST_PATIENCE, PATIENCE_FACTOR, UNKNOWN_PATIENCE
from server.serving import EXIT_ENGINE_LOST, LAST_RESORT_SECONDS
from server.settings import Settings
from storage.records import MAXIMUM_ATTEMPTS
from storage.room import LAST_PART

TEXT = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()


def unit() -> str:
    (found,) = re.findall(r"^```ini\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"\n| {EXIT_ENGINE_LOST} |" in TEXT and f"RestartForceExitStatus={EXIT_ENGINE_LOST}\n" in unit()
    words = " ".join(TEXT.split())
    assert f"gives each {LEAST_PATIENCE:.0f} seconds, or {PATIENCE_FACTOR} times" in words
    assert f"It gives {PATIENCE_FACTOR * LOAD_SECONDS / 60:.0f} minutes to each part of a load" in words
    first = PATIENCE_FACTOR * LEAST_FIRST_SECONDS / 60, PATIENCE_FACTOR * FIRST_TIMES
    assert "{:.0f} minutes or {:.0f} times the expected time to the first step or decode".format(*first) in words
    assert f"{UNKNOWN_PATIENCE / 60:.0f} minutes where the model could not be measured" in words
    assert f"After {LAST_RESORT_SECONDS} seconds it exits" in words
    assert f"{ORDINARY.head:g} seconds for a request's whole head" in words
    assert f"{MAX_HEAD_BYTES // 1024} KiB for a head that is not complete" in words
    assert f"{KEEP_ALIVE_SECONDS} seconds between requests" in words
    assert f"{MAX_BODY_SECONDS:g} seconds and {MAX_JSON_BYTES // 2**20} MiB for a body" in words
    assert f"{ORDINARY.reader:g} seconds for a part of an answer" in words
    assert f"{MAX_MESSAGE_BYTES // 1024} KiB for a message over a WebSocket" in words
    assert f"`DARKROOM_MAX_CONNECTIONS` ({Settings.max_connections}) connections" in words
    assert Settings.min_free == "500MB" and "Below `DARKROOM_MIN_FREE` (500 MB)" in words and LAST_PART == 0.1
    assert (FAREWELL_SECONDS, ROOM_SECONDS) == (2, 60), "it says about two seconds, and about every minute"
    assert (MAXIMUM_ATTEMPTS, CAP_SECONDS) == (3, 300), "it says three times, and five minutes"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    file = tmp_path / "darkroom.service"
    program = shutil.which("true") or "/bin/true"
    file.write_text(unit().replace("/opt/darkroom/.venv/bin/darkroom", program))
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if file.name in line]) == (0, [])
