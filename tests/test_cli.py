"""The command line, run as a person runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from pipelines.hashing import CACHE_NAME
from storage.encoding import read_metadata


def darkroom(
    *arguments: str, checkpoints: Path, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env=variables(checkpoints, **environment),
    )


def variables(checkpoints: Path, **environment: str) -> dict[str, str]:
    root = str(Path(__file__).parent.parent)
    given = {
        "DARKROOM_MODELS": str(checkpoints / "models.toml"),
        "DARKROOM_DEVICE": "cpu",
        "PYTHONPATH": root,
        "OMP_NUM_THREADS": "1",
    }
    return os.environ | given | environment


def test_generate_writes_a_picture_that_carries_its_settings(checkpoints: Path, tmp_path: Path) -> None:
    file = tmp_path / "hat.png"
    done = darkroom("generate", "a hat", "-o", str(file), "--seed", "3", "--size", "48x32", checkpoints=checkpoints)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(file)
    with Image.open(file) as picture:
        assert picture.size == (48, 32)
    assert "Seed: 3" in read_metadata(file.read_bytes())["parameters"]
    assert "4/4 steps" in done.stderr, "the progress bar counts steps"


def test_generate_tells_the_weights_and_remembers_them_where_a_server_has_been(
    checkpoints: Path, tmp_path: Path
) -> None:
    data, told = tmp_path / "data", set()
    for _ in range(2):
        file = tmp_path / "hat.png"
        done = darkroom("generate", "a hat", "-o", str(file), checkpoints=checkpoints, DARKROOM_DATA=str(data))
        assert done.returncode == 0, done.stderr
        story = read_metadata(file.read_bytes())
        told.add(json.loads(story["darkroom"])["model_hash"])
        assert not list(tmp_path.glob("data/*")) or (data / CACHE_NAME).exists()
        data.mkdir(exist_ok=True)
    (digits,) = told
    assert f"Model hash: {digits[:10]}, Model: tiny-sdxl" in story["parameters"]
    listed = darkroom("models", checkpoints=checkpoints, DARKROOM_DATA=str(data)).stdout
    assert listed.count("  hash     ") == 1 and f"  hash     {digits}\n" in listed


def test_a_failure_is_told_once_and_shows_no_progress(checkpoints: Path) -> None:
    done = darkroom("generate", "x", "--model", "missing", checkpoints=checkpoints)
    assert done.returncode != 0
    assert done.stderr.count("does not exist") == 1
    assert "0/30 steps" in done.stderr and "30/30" not in done.stderr


def test_doctor_says_when_the_demo_stands_in_for_a_file_that_is_not_there(checkpoints: Path, tmp_path: Path) -> None:
    done = darkroom("doctor", checkpoints=checkpoints, cwd=tmp_path, DARKROOM_MODELS="", DARKROOM_PROT="1")
    assert "models.toml names no model, so the demo's" in done.stdout
    assert "DARKROOM_PROT is no setting and changes nothing; did you mean 'DARKROOM_PORT'?" in done.stdout


@pytest.mark.parametrize("command", [("serve",), ("models",), ("doctor",), ("generate", "a hat")])
def test_a_catalogue_that_was_named_must_be_there(checkpoints: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    nowhere = str(tmp_path / "nowhere.toml")
    done = darkroom(*command, checkpoints=checkpoints, DARKROOM_MODELS=nowhere)
    assert (done.returncode, done.stderr) == (
        1,
        f"Error: DARKROOM_MODELS names {nowhere}, and there is no such file.\n",
    )


def test_generate_takes_what_a_request_takes(checkpoints: Path, tmp_path: Path) -> None:
    file = tmp_path / "hat.png"
    options = ("--quality", "low", "--clip-skip", "1", "--skip-guidance", "0.5", "--deterministic")
    done = darkroom("generate", "a hat", "-o", str(file), *options, checkpoints=checkpoints)
    assert done.returncode == 0, done.stderr
    story = json.loads(read_metadata(file.read_bytes())["darkroom"])
    assert (story["steps"], story["clip_skip"], story["skip_guidance"], story["deterministic"]) == (2, 1, 0.5, True)


def test_help_cuts_no_description(checkpoints: Path) -> None:
    lines = darkroom("--help", checkpoints=checkpoints, COLUMNS="80").stdout.splitlines()
    assert not [line for line in lines[1:] if line.endswith("...")]


def test_several_pictures_are_numbered_and_the_suffix_decides_the_format(checkpoints: Path, tmp_path: Path) -> None:
    arguments = ("generate", "a hat", "-n", "2", "-o", str(tmp_path / "hat.webp"), "--model", "tiny-sd3")
    done = darkroom(*arguments, checkpoints=checkpoints, DARKROOM_QUEUE_LIMIT="1")
    assert done.returncode == 0, f"the limit is the server's: {done.stderr}"
    for number in (1, 2):
        with Image.open(tmp_path / f"hat-{number}.webp") as picture:
            assert picture.format == "WEBP"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", ""), "prompt is empty"),
        (("generate", "x", "--model", "nope"), "known: tiny-sdxl"),
        (("generate", "x", "--steps", "1000"), "steps must be between 1 and"),
        (("generate", "x", "--sampler", "eulr"), "Did you mean 'Euler'"),
        (("generate", "x", "-o", "/nowhere/x.png"), "There is no folder"),
        (("generate", "x", "-o", "x.gif"), "png, jpeg or webp"),
        (("generate", "x", "--model", "missing"), "does not exist"),
        (("serve", "--port", "99999"), "Error: --port must be between 0 and 65535, not 99999."),
    ],
)
def test_mistakes_end_with_one_line_that_helps(
    checkpoints: Path, arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = darkroom(*arguments, checkpoints=checkpoints, DARKROOM_DATA=str(tmp_path))
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_models_says_what_is_there_and_what_is_not(checkpoints: Path) -> None:
    done = darkroom("models", checkpoints=checkpoints)
    assert done.returncode == 0, done.stderr
    for expected in ("tiny-sdxl  (default)", "gpt-image-1", "needs", "nowhere does not exist"):
        assert expected in done.stdout


def test_a_model_beyond_the_budget_is_found_before_it_is_asked_for(checkpoints: Path, tmp_path: Path) -> None:
    budget = {"DARKROOM_VRAM_BUDGET": "1.5MB", "DARKROOM_DATA": str(tmp_path)}
    done = darkroom("doctor", checkpoints=checkpoints, **budget)
    assert "✓ budgets: 1.5 MB for models at work" in done.stdout
    assert "✓ model tiny-sd3: 1.4 MB, whole and safe; needs 1.4 MB in float32, of 1.5 MB" in done.stdout
    assert "✗ model tiny-sdxl" in done.stdout and "raise DARKROOM_VRAM_BUDGET" in done.stdout
    assert (
        "needs 2.0 MB in float32, of 1.5 MB for all models, too much"
        in darkroom("models", checkpoints=checkpoints, **budget).stdout
    )
    beyond = darkroom("doctor", checkpoints=checkpoints, DARKROOM_VRAM_BUDGET="900TB", DARKROOM_DATA=str(tmp_path))
    assert "✗ budgets" in beyond.stdout and "lower DARKROOM_VRAM_BUDGET" in beyond.stdout


def test_models_with_a_broken_catalogue_says_where(checkpoints: Path, tmp_path: Path) -> None:
    broken = tmp_path / "models.toml"
    broken.write_text('[models.x]\nfamily = "sdxl"\nsorce = "./x"\n')
    done = darkroom("models", checkpoints=checkpoints, DARKROOM_MODELS=str(broken))
    assert done.returncode == 1
    assert "models.x" in done.stderr and "did you mean 'source'" in done.stderr


def test_doctor_finds_what_is_wrong_and_says_what_to_do(checkpoints: Path, tmp_path: Path) -> None:
    (tmp_path / "darkroom.db").write_bytes(b"this is no database" * 100)
    done = darkroom("doctor", checkpoints=checkpoints, DARKROOM_DATA=str(tmp_path))
    assert done.returncode == 1
    for sound in ("✓ libraries", "✓ device", "✓ models.toml", "✓ model tiny-sd3"):
        assert sound in done.stdout
    for reported in (" memory: ", " disk: "):  # whether there is enough is the machine's matter, not the test's
        assert reported in done.stdout
    for problem in ("✗ model missing", "✗ database", "→"):
        assert problem in done.stdout


def test_serve_prints_its_address_serves_and_stops_when_told(checkpoints: Path, tmp_path: Path) -> None:
    more = {"DARKROOM_DATA": str(tmp_path / "data"), "DARKROOM_LOG_LEVEL": "debug", "DARKROOM_MODEL": "x"}
    environment = variables(checkpoints, **more)
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "serve", "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stderr is not None
        output = ""
        while "Open http" not in output:
            line = process.stderr.readline()
            assert line, output
            output += line
        address = re.search(r"http://127\.0\.0\.1:\d+", output)
        assert address is not None
        assert "Device: CPU" in output
        with urllib.request.urlopen(f"{address[0]}/health?signature=private", timeout=30) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        output += process.stderr.read()
        assert process.wait(30) == 0
        assert "DARKROOM_MODEL is no setting and changes nothing; did you mean 'DARKROOM_MODELS'?" in output
        assert '"GET /health HTTP/1.1" 200' in output and "private" not in output
        told = [line for line in output.splitlines() if re.match(r"\d{4}-", line)]
        loggers = {line.split()[3].split(".")[0].rstrip(":") for line in told}
        assert loggers <= {"server", "pipelines", "storage", "uvicorn"}
        assert told[-1].endswith("server.serving: stopped")
        assert any(line.endswith("server.stopping: stopping") for line in told)
    finally:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


def test_a_second_server_on_the_same_folder_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    from storage.lock import FolderLock

    tmp_path.chmod(0o700)
    lock = FolderLock.take(tmp_path)
    try:
        done = darkroom("serve", "--port", "0", checkpoints=checkpoints, DARKROOM_DATA=str(tmp_path))
    finally:
        lock.release()
    assert done.returncode == 1
    assert "in use by process" in done.stderr
    assert "Traceback" not in done.stderr


ANN_S = ["read+write", "ann", "laptop"]


def test_keys_are_made_listed_and_revoked(checkpoints: Path, tmp_path: Path) -> None:
    data = {"DARKROOM_DATA": str(tmp_path)}
    made = darkroom("keys", "create", "ann", "--name", "laptop", "--days", "3", checkpoints=checkpoints, **data)
    key = made.stdout.strip()
    key_id = key.split("_")[1]
    assert key.startswith("dk_") and "this once only" in made.stderr and "DARKROOM_AUTH" in made.stderr
    assert f"No server uses {tmp_path} (DARKROOM_DATA)" in made.stderr
    darkroom("keys", "create", "eve", "--operator", "--read-only", checkpoints=checkpoints, **data)
    listed = darkroom("keys", "list", checkpoints=checkpoints, **data).stdout.splitlines()
    assert listed[0].split() == ["ID", "STATE", "ROLE", "PERMISSIONS", "OWNER", "NAME"]
    assert listed[1].split()[1:] == ["valid", "operator", "read", "eve"]
    assert listed[2].startswith(f"{key_id}  valid until ") and listed[2].split()[4:] == ["user", *ANN_S]
    assert len({line.index(word) for line, word in zip(listed, ("OWNER", "eve", "ann"), strict=True)}) == 1
    assert key not in "".join(listed)
    assert "is revoked" in darkroom("keys", "revoke", key_id, checkpoints=checkpoints, **data).stdout
    (_, revoked) = darkroom("keys", "list", "--owner", "ann", checkpoints=checkpoints, **data).stdout.splitlines()
    assert revoked.split() == [key_id, "revoked", "user", *ANN_S]
    unknown = darkroom("keys", "revoke", "nope", checkpoints=checkpoints, **data)
    assert unknown.returncode == 1 and unknown.stderr == "Error: There is no key nope.\n"


@pytest.mark.parametrize("verb", [("list",), ("revoke", "abc")])
def test_where_there_is_no_database_keys_are_not_looked_for(
    checkpoints: Path, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    done = darkroom("keys", *verb, checkpoints=checkpoints, cwd=tmp_path, DARKROOM_DATA="nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert f" {tmp_path / 'nowhere'}," in done.stderr and "DARKROOM_DATA" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "nowhere").exists()
