"""The words in which bodies and answers are described, and the shapes that all routes share.

An answer's shape is a `TypedDict`, so that the type checker holds the handler to what the OpenAPI document says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, NotRequired, TypedDict, TypeVar

from msgspec import Meta

T = TypeVar("T")


def says(meaning: str, **keywords: Any) -> Meta:
    """What a field means, with keywords of JSON Schema that the document repeats from where they are enforced.

    They stay out of msgspec's own checks, whose messages name neither the field nor the remedy.
    """
    return Meta(description=meaning, extra_json_schema=keywords or None)


Moment = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""ISO 8601 in UTC with a Z, to the millisecond."""

Price = Annotated[
    float | dict[str, float],
    says(
        "Of a picture, in the operator's currency; or by its size, or of a megapixel-step, where that is how it is set."
    ),
]

MOST = 2**53
"""The largest whole number that every JSON reader keeps exact."""


@dataclass(frozen=True)
class Raw:
    """An answer or a body that is no JSON: in words, and the media types that it may have; none where it is empty."""

    meaning: str
    media_types: tuple[str, ...] = ()


@dataclass(frozen=True)
class Documented:
    """What a route's signature can't tell of it.

    Attributes:
        body: the shape of its body.
        example: such a body.
        answers: by status, the shapes of its answers, where it has more than its return type or another.
        raises: what it refuses or fails of, beside what befalls every route of its kind.
        reads: the headers of a request that matter to it.
        sends: by status, the headers of its answers.
    """

    body: Any = None
    example: Any = None
    answers: Mapping[int, Any] = field(default_factory=dict)
    raises: tuple[type[Exception], ...] = ()
    reads: tuple[str, ...] = ()
    sends: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


def documents(
    *,
    body: Any = None,
    example: Any = None,
    answers: Mapping[int, Any] | None = None,
    raises: tuple[type[Exception], ...] = (),
    reads: tuple[str, ...] = (),
    sends: Mapping[int, tuple[str, ...]] | None = None,
) -> dict[str, Documented]:
    """The `opt` by which a route's handler tells this: `opt=OPERATOR | documents(raises=(JobEnded,))`."""
    return {"documents": Documented(body, example, answers or {}, raises, reads, sends or {})}


class Success(TypedDict, Generic[T]):
    """The application's envelope around what was asked for."""

    success: Literal[True]
    data: T


def success(data: T) -> Success[T]:
    """What was asked for, in the application's envelope."""
    return {"success": True, "data": data}


class Pagination(TypedDict):
    """Where a list that comes in pages goes on."""

    total_items: Annotated[int, says("How many there are on all pages.", minimum=0)]
    next_cursor: Annotated[str | None, says("The `cursor` of the next page; null on the last.")]


class Fault(TypedDict):
    """What went wrong."""

    code: Annotated[str, says("Which case it is, for programs.")]
    message: Annotated[str, says("What was wrong, what is allowed and what to do, for people.")]
    field: NotRequired[Annotated[str, says("The field or parameter, as the client wrote it, where one is to blame.")]]


class ApplicationError(TypedDict):
    """An error outside `/v1`."""

    success: Literal[False]
    error: Fault


class OpenAIFault(TypedDict):
    """What went wrong, in OpenAI's words."""

    message: Annotated[str, says("What was wrong, what is allowed and what to do, for people.")]
    type: Annotated[
        Literal["invalid_request_error", "server_error", "requests", "insufficient_quota"],
        says("Whether the client or the server erred, or which limit of the caller's was met."),
    ]
    param: Annotated[str | None, says("The field, as the client wrote it, where one is to blame.")]
    code: Annotated[str, says("Which case it is, for programs.")]


class OpenAIError(TypedDict):
    """An error under `/v1`, so that OpenAI's clients raise their typed exceptions."""

    error: OpenAIFault
