"""Pictures and thumbnails as files: strong ETag, 304, single ranges, immutable."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from typing import Any, BinaryIO

from litestar import Controller, Request, Response, route
from litestar.di import NamedDependency
from litestar.enums import HttpMethod
from litestar.params import FromPath
from litestar.response import Stream

from server.errors import Unauthenticated
from server.identity.caller import Caller
from server.identity.guard import PUBLIC, find_caller
from server.schemas import Raw, documents
from server.state import Services
from storage.errors import ImageNotFound, MediaNotFound
from storage.files import MediaFiles
from storage.media import ImageFormat, MediaKind, MediaName
from storage.records import ImageRecord

log = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 1024
PICTURES = tuple(f"image/{format}" for format in ImageFormat)
FILE = ("ETag", "Cache-Control", "Accept-Ranges")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.IGNORECASE)


class Media(Controller):
    """Files never change under their name, so a client may keep them for ever; a deleted one is 404 at once."""

    path = "/media"
    tags = ["media"]

    @route(
        "/{kind:str}/{year:str}/{month:str}/{file:str}",
        http_method=[HttpMethod.GET, HttpMethod.HEAD],
        opt=PUBLIC
        | documents(
            answers={
                200: Raw("The file.", PICTURES),
                206: Raw("The bytes asked for.", PICTURES),
                304: Raw("The client has these bytes already."),
                416: Raw("The file has no such bytes."),
            },
            reads=("Range", "If-Range", "If-None-Match"),
            sends={200: FILE, 206: (*FILE, "Content-Range"), 304: FILE, 416: (*FILE, "Content-Range")},
        ),
    )
    async def serve(
        self,
        request: Request[Any, Any, Any],
        services: NamedDependency[Services],
        kind: FromPath[str],
        year: FromPath[str],
        month: FromPath[str],
        file: FromPath[str],
    ) -> Response[Any]:
        """One picture or thumbnail."""
        name = MediaName.parse(kind, year, month, file)
        image = await _image(request, services, name)
        if name not in (image.media_name, image.thumbnail_name):
            raise MediaNotFound
        stream, size = await asyncio.to_thread(_open, services.jobs.files, name, image)
        return _answer(request, name, _etag(name, image), stream, size)


async def _image(request: Request[Any, Any, Any], services: Services, name: MediaName) -> ImageRecord:
    """The picture, if its address is signed, if it is public, or if it is the caller's own."""
    images = services.jobs.images
    if services.links.admits(name.url_path, request.query_params):
        return await images.find_media(name.image_id, None)
    try:
        return await images.find_public(name.image_id)
    except ImageNotFound:
        caller = await _owner(request)
        return await images.get(caller.owner_id, name.image_id)


async def _owner(request: Request[Any, Any, Any]) -> Caller:
    """Who asks by a credential, for want of an address that admits everybody."""
    try:
        return await find_caller(request)
    except Unauthenticated as error:
        if request.query_params.keys() & {"expires", "signature"}:
            raise Unauthenticated(
                "This address has expired or was altered; read the picture's facts again, which have a new one."
            ) from error
        raise


def _open(files: MediaFiles, name: MediaName, image: ImageRecord) -> tuple[BinaryIO, int]:
    """The file and its size in bytes, in a worker thread.

    Raises:
        MediaNotFound: also for a file of another size than was written; half a picture is none.
    """
    try:
        stream, status = files.open(name)
    except MediaNotFound:
        log.error("the file %s is missing", name.path)
        raise
    expected = image.byte_count if name.kind is MediaKind.IMAGE else None
    if status.st_size != expected if expected is not None else status.st_size == 0:
        stream.close()
        log.error("the file %s has %d bytes, not those that were written", name.path, status.st_size)
        raise MediaNotFound
    return stream, status.st_size


def _etag(name: MediaName, image: ImageRecord) -> str:
    """A thumbnail is made from its picture once, so the picture's hash and the kind name its bytes too."""
    return f'"{image.sha256}"' if name.kind is MediaKind.IMAGE else f'"{image.sha256}-thumbnail"'


def _answer(request: Request[Any, Any, Any], name: MediaName, etag: str, stream: BinaryIO, size: int) -> Response[Any]:
    """Which status and which bytes the request's conditions come to (RFC 9110, 13 and 14)."""
    headers = {
        "ETag": etag,
        "Cache-Control": "private, max-age=31536000, immutable",
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    media_type = f"image/{name.format.value}"
    wanted = _range(request, etag, size)
    code = 200 if wanted is None else 206
    if _matches(request.headers.get("if-none-match", ""), etag):
        code = 304
    elif wanted is not None and not wanted:
        code = 416
        headers["Content-Range"] = f"bytes */{size}"
    elif wanted is not None:
        headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{size}"
    if code in (200, 206):
        headers["Content-Length"] = str(size if wanted is None else len(wanted))
    if code == 304:
        stream.close()
        # No plain Response: that one says Content-Length: 0, and a 304 may only give the picture's own length.
        return Stream((), status_code=code, headers=headers, media_type=media_type)
    if code == 416 or request.method == "HEAD":
        stream.close()
        return Response(b"", status_code=code, headers=headers, media_type=media_type)
    return Stream(_chunks(stream, wanted or range(size)), status_code=code, headers=headers, media_type=media_type)


def _matches(header: str, etag: str) -> bool:
    """If-None-Match compares weakly (RFC 9110, 13.1.2)."""
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag in tags


def _range(request: Request[Any, Any, Any], etag: str, size: int) -> range | None:
    """The bytes asked for; an empty range when none of them is there; None for the whole file.

    More than one range, another unit, a stale If-Range, or a HEAD mean the whole file (RFC 9110, 14.2).
    """
    match = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if match is None or match.groups() == ("", "") or request.method != "GET":
        return None
    if request.headers.get("if-range", etag) != etag:
        return None
    start, end = match[1], match[2]
    if not start:
        return range(max(0, size - int(end)), size)
    if end and int(end) < int(start):
        return None
    return range(min(int(start), size), min(int(end) + 1, size) if end else size)


async def _chunks(stream: BinaryIO, wanted: range) -> AsyncIterator[bytes]:
    with stream:
        stream.seek(wanted.start)
        left = len(wanted)
        while left > 0 and (chunk := await asyncio.to_thread(stream.read, min(CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk
