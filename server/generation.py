"""The body of an image generation as clients write it is checked here, and becomes an order."""

import re
import secrets
from typing import Any

from PIL import Image

from pipelines.catalog import Catalog, ModelEntry
from pipelines.errors import InvalidRequest
from pipelines.infotext import metadata
from pipelines.quality import with_quality
from pipelines.request import MAX_SEED, ImageRequest, Wishes, check_range, settle
from pipelines.sizes import parse_size, size_of_ratio
from pipelines.wording import nearest
from server.body import to_struct
from server.errors import MissingField, UnknownField, UnsupportedField
from server.generation_body import (
    ALIASES,
    ANSWERS_AS,
    BACKGROUNDS,
    LATER,
    MAX_DEADLINE,
    MAX_IMAGES,
    MAX_LABEL_CHARACTERS,
    MAX_PRIORITY,
    STYLES,
    GenerationBody,
)
from server.identity.caller import Caller
from server.jobs.orders import Order
from server.schemas import MOST
from storage.encoding import encode
from storage.errors import MetadataTooLarge
from storage.media import ImageFormat

# Neither SQLite's tools nor a picture's metadata hold a NUL, and UTF-8 knows no half of a surrogate pair.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def read_body(data: dict[str, Any]) -> GenerationBody:
    """Check the fields' names and types.

    Raises:
        InvalidRequest: naming the field as the client wrote it.
    """
    fields: dict[str, Any] = {}
    spelling: dict[str, str] = {}
    for written, value in data.items():
        name = _canonical(written)
        spelling[name] = written
        _check_value(written, value)
        if name in LATER and value not in (None, False, 0, [], {}, ""):
            raise UnsupportedField(written, f"{written}: this server does not do {LATER[name]} yet; leave it out.")
        if name in LATER:
            continue
        if name not in GenerationBody.__struct_fields__:
            hint = nearest(name[:80], [*GenerationBody.__struct_fields__, *ALIASES])
            raise UnknownField(written[:80], f"Unknown field {written[:80]!r}{hint}")
        if value is not None and fields.setdefault(name, value) != value:
            raise InvalidRequest(written, f"{written} is given twice, with different values.")
    if "prompt" not in fields:
        raise MissingField("prompt", "prompt is required; describe the picture you want.")
    return to_struct(fields, GenerationBody, spelling)


def order_of(body: GenerationBody, catalog: Catalog, caller: Caller, traceparent: str | None = None) -> Order:
    """Settle what a client wants against the catalogue.

    Raises:
        InvalidRequest, UnknownModel: naming the field, the rule and the remedy.
        Forbidden: a priority that is for operators.
    """
    count = 1 if body.n is None else body.n
    check_range("n", count, 1, MAX_IMAGES)
    check_range("priority", body.priority or 0, -MAX_PRIORITY, MAX_PRIORITY)
    caller.check_priority(body.priority)
    if body.deadline is not None:
        check_range("deadline", body.deadline, 0, MAX_DEADLINE)
    if body.output_compression is not None:
        check_range("output_compression", body.output_compression, 0, 100)
    _check_words(body)
    entry = catalog.resolve(body.model)
    seed = _seed(body.seed, count)
    width, height = _size(body, entry)
    wishes = Wishes(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        width=width,
        height=height,
        steps=body.steps,
        guidance_scale=body.guidance_scale,
        sampler=body.sampler,
        schedule=body.schedule,
        clip_skip=body.clip_skip,
        skip_guidance=body.skip_guidance,
        deterministic=bool(body.deterministic),
    )
    quality, wishes = with_quality(body.quality, wishes, entry)
    requests = [settle(wishes, entry, seed + index) for index in range(count)]
    format = image_format(body.output_format)
    _check_story(requests[-1], entry, format)
    return Order(
        owner_id=caller.owner_id,
        key_id=caller.key_id,
        limited=not caller.is_operator,
        entry=entry,
        requests=requests,
        format=format,
        compression=body.output_compression,
        priority=body.priority or 0,
        deadline=body.deadline,
        session_id=_short("session_id", body.session_id),
        user=_short("user", body.user),
        safety_identifier=_short("safety_identifier", body.safety_identifier),
        public=bool(body.public),
        notes={"quality": quality},
        traceparent=traceparent,
    )


def wants_base64(body: GenerationBody) -> bool:
    """Whether the picture itself is to be in the response, by OpenAI's rules of who gets what unasked."""
    if body.response_format is not None:
        return body.response_format == "b64_json"
    return (body.model or "").startswith(("gpt-image", "chatgpt-image")) or body.output_format is not None


def image_format(written: str | None) -> ImageFormat:
    name = {"jpg": "jpeg"}.get((written or "png").lower(), (written or "png").lower())
    if name not in list(ImageFormat):
        raise InvalidRequest("output_format", f"output_format must be png, jpeg or webp, not {name[:24]!r}.")
    return ImageFormat(name)


def _check_value(written: str, value: object) -> None:
    """What no field may hold, whatever its type."""
    if isinstance(value, str) and _UNSTORABLE.search(value):
        raise InvalidRequest(written[:80], f"{written[:80]} holds a NUL or half a surrogate pair; take it out.")
    if isinstance(value, int) and abs(value) > MOST:
        raise InvalidRequest(written[:80], f"{written[:80]} is beyond ±{MOST}.")


def _check_words(body: GenerationBody) -> None:
    """The words of OpenAI's of which only some are known; its style is accepted and leaves these models as they are."""
    if body.background == "transparent":
        raise InvalidRequest("background", "background: this model cannot make transparent pictures; use opaque.")
    words = (("background", BACKGROUNDS), ("style", STYLES), ("response_format", ANSWERS_AS))
    for field, known in words:
        word = getattr(body, field)
        if word is not None and word not in known:
            raise InvalidRequest(field, f"{field} must be {' or '.join(known)}, not {word[:24]!r}.")


def _check_story(request: ImageRequest, entry: ModelEntry, format: ImageFormat) -> None:
    """Refuse now what a JPEG could not carry: found when the picture is encoded, it would have been made in vain."""
    if format is ImageFormat.JPEG:
        try:
            encode(Image.new("RGB", (1, 1)), format, metadata(request, entry, model_hash="0" * 64))
        except MetadataTooLarge as error:
            raise InvalidRequest("prompt", str(error)) from error


def _seed(written: int | None, count: int) -> int:
    if written is None or written == -1:
        # Short enough to read out, and to type into tools that stop at 32 bits.
        return secrets.randbelow(2**32 - MAX_IMAGES)
    most = MAX_SEED - count + 1
    if not 0 <= written <= most:
        raise InvalidRequest("seed", f"seed must be between 0 and {most}, or -1 to have one drawn, not {written}.")
    return written


def _size(body: GenerationBody, entry: ModelEntry) -> tuple[int | None, int | None]:
    if body.width is not None or body.height is not None:
        return body.width, body.height
    if body.size is not None and body.size.strip().lower() != "auto":
        return parse_size(body.size)
    if body.aspect_ratio is not None:
        return size_of_ratio(body.aspect_ratio, entry)
    return None, None


def _canonical(written: str) -> str:
    """The field's name in snake case, aliases resolved."""
    name = re.sub(r"(?<=[a-z])[A-Z]", lambda match: "_" + match[0].lower(), written)
    return ALIASES.get(name, name)


def _short(field: str, text: str | None) -> str | None:
    if text is not None and len(text) > MAX_LABEL_CHARACTERS:
        raise InvalidRequest(field, f"{field} has {len(text)} characters; at most {MAX_LABEL_CHARACTERS} are allowed.")
    return text
