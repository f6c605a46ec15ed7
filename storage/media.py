"""The names of media files: the only place that knows where a picture lies and what its address is."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Self

from storage.errors import MediaNotFound

UUID_PATTERN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
YEAR_PATTERN = re.compile(r"[0-9]{4}")
MONTH_PATTERN = re.compile(r"0[1-9]|1[0-2]")


class ImageFormat(StrEnum):
    """A format that pictures are kept in; its value is also the file's suffix."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


class MediaKind(StrEnum):
    """A family of media files; its value is also the folder's name."""

    IMAGE = "generated_images"
    THUMBNAIL = "thumbnails"


@dataclass(frozen=True, slots=True)
class MediaName:
    """One media file's name. It cannot be made from parts that could lead out of the media folder."""

    kind: MediaKind
    year: str
    month: str
    image_id: str
    format: ImageFormat

    def __post_init__(self) -> None:
        patterns = ((YEAR_PATTERN, self.year), (MONTH_PATTERN, self.month), (UUID_PATTERN, self.image_id))
        if not all(pattern.fullmatch(part) for pattern, part in patterns):
            raise MediaNotFound

    @classmethod
    def parse(cls, kind: str, year: str, month: str, file_name: str) -> Self:
        """The name that an address spells. Raises MediaNotFound for anything but the one exact spelling."""
        image_id, _, suffix = file_name.partition(".")
        try:
            name = cls(MediaKind(kind), year, month, image_id, ImageFormat(suffix))
        except ValueError as error:
            raise MediaNotFound from error
        if name.kind is MediaKind.THUMBNAIL and name.format is not ImageFormat.PNG:
            raise MediaNotFound
        return name

    @classmethod
    def of_image(cls, image_id: str, created_at: datetime, format: ImageFormat) -> Self:
        return cls(MediaKind.IMAGE, *_month_of(created_at), image_id, format)

    @classmethod
    def of_thumbnail(cls, image_id: str, created_at: datetime) -> Self:
        return cls(MediaKind.THUMBNAIL, *_month_of(created_at), image_id, ImageFormat.PNG)

    @property
    def folders(self) -> tuple[str, str, str]:
        return (self.kind.value, self.year, self.month)

    @property
    def file_name(self) -> str:
        return f"{self.image_id}.{self.format.value}"

    @property
    def path(self) -> PurePosixPath:
        """Where the file lies beneath the media folder."""
        return PurePosixPath(*self.folders, self.file_name)

    @property
    def url_path(self) -> str:
        return f"/media/{self.path}"


def _month_of(moment: datetime) -> tuple[str, str]:
    moment = moment.astimezone(UTC)
    return f"{moment.year:04}", f"{moment.month:02}"
