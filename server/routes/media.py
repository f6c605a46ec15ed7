"""Pictures and thumbnails as files: strong ETag, 304, single ranges, immutable."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any, BinaryIO

from litestar import Controller, Request, Response, route
from litestar.enums import HttpMethod
from litestar.response import Stream

from server.state import LOCAL_OWNER, Services
from storage.media import MediaKind, MediaName

CHUNK_BYTES = 256 * 1024
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Media(Controller):
    """Files never change under their name, so a client may keep them for ever; a deleted one is 404 at once."""

    path = "/media"
    tags = ["media"]

    @route("/{kind:str}/{year:str}/{month:str}/{file:str}", http_method=[HttpMethod.GET, HttpMethod.HEAD])
    async def serve(
        self, request: Request[Any, Any, Any], services: Services, kind: str, year: str, month: str, file: str
    ) -> Response[Any]:
        """One picture or thumbnail."""
        name = MediaName.parse(kind, year, month, file)
        image = await services.jobs.images.find_media(name.image_id, LOCAL_OWNER)
        stream, status = await asyncio.to_thread(services.jobs.files.open, name)
        # A thumbnail is made from the picture once, so the picture's hash and the kind name its bytes too.
        etag = f'"{image.sha256}"' if name.kind is MediaKind.IMAGE else f'"{image.sha256}-thumbnail"'
        headers = {
            "ETag": etag,
            "Cache-Control": "private, max-age=31536000, immutable",
            "Accept-Ranges": "bytes",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'; sandbox",
        }
        if _matches(request.headers.get("if-none-match", ""), etag):
            stream.close()
            return Response(None, status_code=304, headers=headers)
        size = status.st_size
        wanted = _range(request, etag, size)
        if wanted is not None and not wanted:
            stream.close()
            return Response(None, status_code=416, headers=headers | {"Content-Range": f"bytes */{size}"})
        first, last = (0, size - 1) if wanted is None else (wanted.start, wanted.stop - 1)
        code = 200 if wanted is None else 206
        if wanted is not None:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        headers["Content-Length"] = str(last - first + 1)
        media_type = f"image/{name.format.value}"
        if request.method == "HEAD":
            stream.close()
            return Response(None, status_code=code, headers=headers, media_type=media_type)
        return Stream(_chunks(stream, first, last), status_code=code, headers=headers, media_type=media_type)


def _matches(header: str, etag: str) -> bool:
    """If-None-Match compares weakly (RFC 9110, 13.1.2)."""
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag in tags


def _range(request: Request[Any, Any, Any], etag: str, size: int) -> range | None:
    """The bytes asked for; an empty range when none of them is there; None for the whole file.

    More than one range, another unit, or a stale If-Range mean the whole file (RFC 9110, 14.2).
    """
    match = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if match is None or match.groups() == ("", "") or request.headers.get("if-range", etag) != etag:
        return None
    start, end = match[1], match[2]
    if not start:
        return range(max(0, size - int(end)), size)
    if end and int(end) < int(start):
        return None
    return range(min(int(start), size), min(int(end) + 1, size) if end else size)


async def _chunks(stream: BinaryIO, first: int, last: int) -> AsyncIterator[bytes]:
    with stream:
        stream.seek(first)
        left = last - first + 1
        while left > 0 and (chunk := await asyncio.to_thread(stream.read, min(CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk
