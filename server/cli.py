"""The command line: `darkroom serve | generate | models | doctor | top`, and `darkroom keys create | list | revoke`."""

import logging
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from pipelines.errors import PipelineError
from server.remote import Unreachable
from server.settings import Settings, SettingsError
from storage.errors import StorageError


def _explained(command: Callable[..., None]) -> Callable[..., None]:
    """End with one line that helps, not with a traceback, for every error that was foreseen."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except* (PipelineError, StorageError, SettingsError, Unreachable) as group:
            # A group, because the parts of a server run and stop together.
            raise click.ClickException(str(_first(group))) from None

    return wrapped


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="darkroom")
def main() -> None:
    """Darkroom: an image-generation server of your own."""


@main.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one.  [default: 8000]")
@click.option("--data", type=click.Path(path_type=Path), help="Folder for the database and pictures.  [default: data]")
@click.option("--supervise", is_flag=True, help="Start it anew when it crashes or loses its GPU.")
@_explained
def serve(host: str | None, port: int | None, data: Path | None, supervise: bool) -> None:
    """Start the server."""
    settings = Settings.from_environment(host=host, port=port, data=data)
    if supervise:
        from server.supervising import Supervisor, command_of

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        given = {"--host": host, "--port": port, "--data": data}
        arguments = [f"{name}={value}" for name, value in given.items() if value is not None]
        sys.exit(Supervisor(command_of(arguments)).run())
    from server.serving import serve_forever

    sys.exit(serve_forever(settings))


@main.command()
@click.argument("prompt")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write: .png .jpg .webp")
@click.option("--model", help="Model or alias from models.toml.")
@click.option("--negative", "negative_prompt", help="What the picture should not show.")
@click.option("--size", help="WIDTHxHEIGHT in pixels.")
@click.option("--steps", type=int, help="Denoising steps.")
@click.option("--guidance", "guidance_scale", type=float, help="Guidance scale; 1 turns guidance off.")
@click.option("--sampler", help='Such as "Euler a" or "DPM++ 2M Karras".')
@click.option("--schedule", help="Such as karras or beta.")
@click.option("--seed", type=int, help="The same seed makes the same picture.")
@click.option("--quality", help="draft, low, medium, high, xhigh or max: how many steps, where --steps says nothing.")
@click.option("--clip-skip", type=int, help="Further layers of the CLIP text encoders to leave out, 0 to 11.")
@click.option("--skip-guidance", type=float, help="The last share of the steps, 0 to 1, that goes without guidance.")
@click.option("--deterministic", is_flag=True, default=None, help="The same bytes at every run, at the cost of time.")
@click.option("-n", "count", type=click.IntRange(1, 10), help="How many pictures.")
@_explained
def generate(prompt: str, output: Path | None, count: int | None, **options: Any) -> None:
    """Make a picture in this process, without a server."""
    from server.offline import generate_files

    logging.disable(logging.ERROR)  # whatever fails is raised here, and told once
    given = {name: value for name, value in options.items() if value is not None}
    for path in generate_files(Settings.from_environment(), {"prompt": prompt, "n": count} | given, output):
        click.echo(path)


@main.command(short_help="List the models, and whether they are there and fit.")
@_explained
def models() -> None:
    """List the configured models, where they come from, whether they are there and what memory they need."""
    from server.inspection import model_lines

    for line in model_lines(Settings.from_environment()):
        click.echo(line)


@main.command(short_help="Look for problems, and say what to do about each.")
@_explained
def doctor() -> None:
    """Check torch, device, memory, disk, models.toml and database, and say what to do about each problem."""
    from server.inspection import examine

    findings = list(examine(Settings.from_environment()))
    for finding in findings:
        click.echo(str(finding))
    sys.exit(any(finding.problem for finding in findings))


@main.command(short_help="Watch a running server.")
@click.option("--url", help="Where the server answers.  [default: that of DARKROOM_DATA, else DARKROOM_PORT here]")
@click.option("--key", help="A key of that server's.  [default: none is needed for a server of this data folder]")
@click.option("--once", is_flag=True, help="Print one frame and exit; so does output that is no terminal.")
@_explained
def top(url: str | None, key: str | None, once: bool) -> None:
    """Watch a running server: device, models, the pictures at work, the queue. q leaves."""
    from server.identity.local_pass import LocalPass
    from server.remote import Remote
    from server.terminal import print_once, watch

    settings = Settings.from_environment()
    known = LocalPass.read(settings.data)
    url = (url or (known.url if known else settings.url)).rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise click.BadParameter("it must begin with http:// or https://.", param_hint="--url")
    interactive = sys.stdin.isatty() and sys.stdout.isatty() and not once
    key = key or (known.token if known and known.url == url else "")
    (watch if interactive else print_once)(Remote(url, key))


@main.group(short_help="Make, list and revoke the keys by which people are known.")
def keys() -> None:
    """Make, list and revoke API keys. They are asked for while DARKROOM_AUTH is keys or jwt.

    These commands reach the server that uses the data folder (DARKROOM_DATA), or its database while none runs.
    """


@keys.command()
@click.argument("owner")
@click.option("--name", default="", help="What the key is for, such as the program that uses it.")
@click.option("--operator", is_flag=True, help="Its owner also runs the server: the queue, keys, figures of everybody.")
@click.option("--read-only", is_flag=True, help="It is good for looking only.")
@click.option("--days", type=click.IntRange(1, 3650), help="After so many days it ends.  [default: never]")
@_explained
def create(owner: str, name: str, operator: bool, read_only: bool, days: int | None) -> None:
    """Make a key for OWNER. Pictures belong to their owner, whichever of the owner's keys made them."""
    from datetime import timedelta

    from server.identity.caller import Permission, Role
    from server.identity.desk import KeyDesk
    from server.identity.keys import NewKey

    new = NewKey(
        owner_id=owner,
        name=name,
        role=Role.OPERATOR if operator else Role.USER,
        permissions=frozenset([Permission.READ] if read_only else Permission),
        lifetime=None if days is None else timedelta(days=days),
    )
    settings = Settings.from_environment()
    desk = KeyDesk(settings.data)
    made = desk.create(new)
    click.echo(made["key"])
    click.echo(f"Key {made['id']} of {made['owner']} ({made['role']}). It is shown this once only.", err=True)
    if desk.auth is None:
        click.echo(f"No server uses {desk.folder} (DARKROOM_DATA): the key was made in the database there.", err=True)
    if (desk.auth or settings.auth) == "off":
        click.echo("A server asks for keys while DARKROOM_AUTH is keys or jwt.", err=True)


@keys.command("list")
@click.option("--owner", help="Only this owner's.")
@_explained
def list_keys(owner: str | None) -> None:
    """List the keys, the newest first."""
    from server.identity.desk import KeyDesk

    found = KeyDesk(Settings.from_environment().data).all(owner)
    if not found:
        click.echo("There are no keys; `darkroom keys create OWNER` makes one.", err=True)
        return
    rows = [("ID", "STATE", "ROLE", "PERMISSIONS", "OWNER", "NAME"), *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(key: Any) -> tuple[str, ...]:
    """What `list` shows of a key."""
    state = "revoked" if key["revokedAt"] else "valid" if key["valid"] else "expired"
    until = f" until {key['expiresAt'][:10]}" if key["expiresAt"] and state == "valid" else ""
    return key["id"], state + until, key["role"], "+".join(key["permissions"]), key["owner"], key["name"]


@keys.command()
@click.argument("key_id", metavar="ID")
@_explained
def revoke(key_id: str) -> None:
    """End the key with this ID (as `list` shows it) and the jobs that came with it."""
    from server.identity.desk import KeyDesk

    ended = KeyDesk(Settings.from_environment().data).revoke(key_id)
    click.echo(f"Key {ended['id']} of {ended['owner']} is revoked.")
