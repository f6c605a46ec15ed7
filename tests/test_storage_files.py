"""Media files: written whole or not at all, found only by their exact names, swept when nobody owns them."""

import errno
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest

from storage.errors import DiskFault, DiskFull, MediaNotFound
from storage.files import MediaFiles, Swept
from storage.images import ImageStore
from storage.media import ImageFormat, MediaName
from storage.records import NewImage
from tests.storage_fakes import finished_job, new_image, opened, save

pytestmark = pytest.mark.anyio

NOVEMBER = datetime(2026, 11, 21, tzinfo=UTC)
ID = "0d9bd9bb-4a0e-4ffb-9f0c-0f4b2b3f4a5e"
ODD_NAMES = [
    "",
    ".",
    "..",
    "/",
    "../lock",
    "..%2flock",
    "%2e%2e/lock",
    "..\\lock",
    "\\\\host\\share",
    "/etc/passwd",
    *("a" * 300, f"{ID}", f"{ID}.", f"{ID}.PNG", f"{ID}.png ", f"{ID}.png\0", f"\0{ID}.png", f"{ID}.png/.."),
    *(f"../{ID}.png", f"{ID}.png.png", f"{ID.upper()}.png", f"{ID}.gif", f"{ID}.jpg", f"{{{ID}}}.png"),
    f"{ID.replace('-', '')}.png",
    f"{ID}\n.png",
    f"{ID}.png\n",
    f"‥/{ID}.png",
    f"{ID}．png",
    "٠" * 36 + ".png",
]


def _image_name(image: NewImage) -> MediaName:
    return MediaName.of_image(image.id, image.created_at, image.format)


def _thumbnail_name(image: NewImage) -> MediaName:
    return MediaName.of_thumbnail(image.id, image.created_at)


def _read(files: MediaFiles, name: MediaName) -> bytes:
    file, status = files.open(name)
    with file:
        content = file.read()
    assert status.st_size == len(content)
    return content


def _all_files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("format", ImageFormat)
def test_a_saved_picture_is_found_under_its_address(tmp_path: Path, format: ImageFormat) -> None:
    files, image = MediaFiles(tmp_path), new_image(created_at=NOVEMBER, format=format)
    stored = save(files, image, b"picture" * 1000)
    assert (stored.byte_count, stored.sha256) == (7000, sha256(b"picture" * 1000).hexdigest())
    name = MediaName.parse("generated_images", "2026", "11", f"{image.id}.{format}")
    assert name == _image_name(image)
    assert name.url_path == f"/media/generated_images/2026/11/{image.id}.{format}"
    assert _read(files, name) == b"picture" * 1000
    assert _read(files, MediaName.parse("thumbnails", "2026", "11", f"{image.id}.png")) == b"thumbnail"
    assert _all_files(tmp_path) == {files.path_of(name), files.path_of(_thumbnail_name(image))}


def test_files_and_folders_are_private(tmp_path: Path) -> None:
    save(MediaFiles(tmp_path / "data"), new_image())
    for path in (tmp_path / "data").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_what_is_written_is_synced_in_the_right_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before its new name, the folder after it, every new folder's parent too."""
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def watched_fsync(descriptor: int) -> None:
        steps.append(f"sync {_shape(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        fsync(descriptor)

    def watched_rename(source: Path, target: Path) -> None:
        steps.append(f"rename to {_shape(str(target))}")
        rename(source, target)

    def _shape(path: str) -> str:
        relative = Path(path).relative_to(tmp_path)
        return "temporary" if relative.suffix == ".part" else str(relative).replace(image.id, "id")

    image = new_image(created_at=NOVEMBER)
    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched_rename)
    save(MediaFiles(tmp_path), image)
    expected = ["sync .", "sync media"]  # for media and media/tmp
    for kind in ("thumbnails", "generated_images"):
        folder = f"media/{kind}"
        expected += ["sync media", f"sync {folder}", f"sync {folder}/2026", "sync temporary"]
        expected += [f"rename to {folder}/2026/11/id.png", f"sync {folder}/2026/11"]
    assert steps == expected


@pytest.mark.parametrize("file_name", ODD_NAMES)
def test_an_odd_name_is_no_file(tmp_path: Path, file_name: str) -> None:
    (tmp_path / "lock").write_text("secret")
    save(MediaFiles(tmp_path), new_image(id=ID, created_at=NOVEMBER))
    with pytest.raises(MediaNotFound):
        MediaName.parse("generated_images", "2026", "11", file_name)


@pytest.mark.parametrize(
    "folders",
    [
        ("", "2026", "11"),
        ("tmp", "2026", "11"),
        ("..", "2026", "11"),
        ("generated_images", "..", "11"),
        ("generated_images", "26", "11"),
        ("generated_images", "٢٠٢٦", "11"),
        ("generated_images", "2026", "1"),
        ("generated_images", "2026", "13"),
        ("generated_images", "2026", "00"),
        ("generated_images", "2026", "11/.."),
        ("generated_images", "2026\n", "11"),
    ],
)
def test_an_odd_folder_is_no_folder(folders: tuple[str, str, str]) -> None:
    with pytest.raises(MediaNotFound):
        MediaName.parse(*folders, f"{ID}.png")


def test_a_thumbnail_is_always_png() -> None:
    with pytest.raises(MediaNotFound):
        MediaName.parse("thumbnails", "2026", "11", f"{ID}.jpeg")


def _plant_link_to_file(path: Path, secret: Path) -> None:
    path.unlink()
    path.symlink_to(secret)


def _plant_link_to_folder(path: Path, secret: Path) -> None:
    path.unlink()
    path.parent.rmdir()
    (secret.parent / path.name).write_text("secret")
    path.parent.symlink_to(secret.parent)


def _plant_pipe(path: Path, _: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _plant_folder(path: Path, _: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("plant", [_plant_link_to_file, _plant_link_to_folder, _plant_pipe, _plant_folder])
def test_only_a_regular_file_in_real_folders_is_served(tmp_path: Path, plant: Callable[[Path, Path], None]) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    files, image = MediaFiles(tmp_path / "data"), new_image()
    save(files, image)
    plant(files.path_of(_image_name(image)), outside / "secret")
    before = _all_files(outside)
    with pytest.raises(MediaNotFound):
        files.open(_image_name(image))
    if plant is _plant_link_to_folder:
        assert not files.delete(_image_name(image))
    assert _all_files(outside) == before


def test_deleting_is_final_and_may_be_repeated(tmp_path: Path) -> None:
    files, image = MediaFiles(tmp_path), new_image()
    save(files, image)
    assert files.delete(_image_name(image))
    assert not files.delete(_image_name(image))
    with pytest.raises(MediaNotFound):
        files.open(_image_name(image))
    assert _read(files, _thumbnail_name(image)) == b"thumbnail"


def _break(monkeypatch: pytest.MonkeyPatch, operation: str, times: int, code: int) -> list[int]:
    """Let the operation fail the first few times; the list grows by one with every call."""
    calls: list[int] = []
    works = getattr(os, operation)

    def broken(*arguments: object) -> object:
        calls.append(1)
        if len(calls) <= times:
            raise OSError(code, os.strerror(code))
        return works(*arguments)

    monkeypatch.setattr(os, operation, broken)
    return calls


def test_after_one_failed_fsync_the_picture_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, image = MediaFiles(tmp_path), new_image()
    save(files, image)
    files.delete(_image_name(image))
    files.delete(_thumbnail_name(image))
    inodes: list[int] = []
    works = os.fsync

    def fails_once(descriptor: int) -> None:
        inodes.append(os.fstat(descriptor).st_ino)
        if len(inodes) == 1:
            raise OSError(errno.EIO, "input/output error")
        works(descriptor)

    written = _break(monkeypatch, "write", 0, 0)
    monkeypatch.setattr(os, "fsync", fails_once)
    save(files, image)
    assert len(written) == 3, "the thumbnail twice, the picture once"
    assert _read(files, _thumbnail_name(image)) == b"thumbnail"
    assert len(_all_files(tmp_path)) == 2


def test_after_two_failed_fsyncs_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = MediaFiles(tmp_path)
    save(files, new_image(id=ID, created_at=NOVEMBER))
    before = _all_files(tmp_path)
    calls = _break(monkeypatch, "fsync", 2, errno.EIO)
    with pytest.raises(DiskFault, match="error"):
        save(files, new_image(created_at=NOVEMBER))
    assert len(calls) == 2, "fsync is never simply called again on the same file"
    assert _all_files(tmp_path) == before


def test_a_full_disk_is_not_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = MediaFiles(tmp_path)
    calls = _break(monkeypatch, "write", 9, errno.ENOSPC)
    with pytest.raises(DiskFull):
        save(files, new_image())
    assert len(calls) == 1
    assert _all_files(tmp_path) == set()


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, image = MediaFiles(tmp_path), new_image()
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    save(files, image, b"0123456789")
    assert _read(files, _image_name(image)) == b"0123456789"


def _age(path: Path, minutes: int) -> None:
    then = datetime.now().timestamp() - 60 * minutes
    os.utime(path, (then, then), follow_symlinks=False)


async def test_the_sweep_removes_old_orphans_and_nothing_else(tmp_path: Path) -> None:
    files, images = MediaFiles(tmp_path), [new_image(index=index) for index in range(4)]
    wanted, deleted, orphan, young_orphan = images
    for image in images:
        save(files, image)
        for name in (_image_name(image), _thumbnail_name(image)):
            _age(files.path_of(name), 59 if image is young_orphan else 61)
    temporary = tmp_path / "media" / "tmp"
    strangers = [files.path_of(_image_name(wanted)).with_name(name) for name in ("notes.txt", f"{uuid4()}.gif")]
    link = files.path_of(_image_name(new_image()))
    link.symlink_to(tmp_path / "lock")
    for path, minutes in (
        (temporary / "a.part", 61),
        (temporary / "b.part", 59),
        *((s, 99) for s in strangers),
    ):
        path.touch()
        _age(path, minutes)
    async with opened(tmp_path) as database:
        await finished_job(database, wanted, deleted)
        await ImageStore(database).delete("ann", deleted.id)
        assert await files.sweep(ImageStore(database).known_ids) == Swept(temporary=1, orphaned=4)
        assert await files.sweep(ImageStore(database).known_ids) == Swept(temporary=0, orphaned=0)
    kept = {files.path_of(of(image)) for image in (wanted, young_orphan) for of in (_image_name, _thumbnail_name)}
    assert _all_files(tmp_path / "media") == kept | {temporary / "b.part", link, *strangers}


async def test_the_sweep_asks_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.files.SWEEP_BATCH", 3)
    files, asked = MediaFiles(tmp_path), []
    for _ in range(4):
        image = new_image()
        save(files, image)
        _age(files.path_of(_image_name(image)), 61)

    async def all_known(image_ids: set[str]) -> set[str]:
        asked.append(len(image_ids))
        return image_ids

    assert await files.sweep(all_known) == Swept(temporary=0, orphaned=0)
    assert asked == [3, 1]


async def test_a_sweep_of_nothing_is_fine(tmp_path: Path) -> None:
    async def none_known(_: set[str]) -> set[str]:
        return set()

    assert await MediaFiles(tmp_path / "absent").sweep(none_known) == Swept(temporary=0, orphaned=0)
