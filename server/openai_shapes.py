"""The shapes of answers under `/v1`: OpenAI's, with our own fields beside theirs."""

from collections.abc import Sequence
from typing import Annotated, Literal, NotRequired, TypedDict

from server.playground import ImageFacts
from server.schemas import Price, says
from storage.media import ImageFormat


class Picture(TypedDict):
    """One picture: its address or its bytes."""

    id: str
    seed: Annotated[int, says("Its own seed.")]
    width: Annotated[int, says("In pixels.", minimum=1)]
    height: Annotated[int, says("In pixels.", minimum=1)]
    revised_prompt: Annotated[str, says("The prompt as it was used.")]
    imageUrl: Annotated[str, says("The path of its file on this server.")]
    thumbnailUrl: Annotated[str, says("The path of its thumbnail.")]
    url: NotRequired[Annotated[str, says("Its absolute address; with `b64_json` there is none.")]]
    b64_json: NotRequired[Annotated[str, says("The very bytes of its file, in base64.")]]


class TokenDetails(TypedDict):
    """What the tokens were."""

    text_tokens: int
    image_tokens: int


class TokenUsage(TypedDict):
    """The prompt's tokens."""

    total_tokens: int
    input_tokens: int
    output_tokens: int
    input_tokens_details: TokenDetails


class Pictures(ImageFacts):
    """OpenAI's answer and, beside it, the first picture in the playground's shape.

    `generationTime` is the slowest picture's and `cost` that of all of them.
    """

    created: Annotated[int, says("Seconds since 1970.")]
    data: Annotated[list[Picture], says("Those that could be made.")]
    background: Literal["opaque"]
    output_format: ImageFormat
    quality: Literal["low", "medium", "high", "xhigh", "max"]
    size: Annotated[str, says('Such as `"1024x1024"`.')]
    usage: TokenUsage
    estimatedTime: Annotated[
        float, says("Seconds that the whole job, its wait included, was expected to take when it came.", minimum=0)
    ]
    warnings: NotRequired[
        Annotated[list[str], says("Which pictures failed and why, and which words the text encoders had no room for.")]
    ]


class ModelDefaults(TypedDict):
    """What holds where a request says nothing."""

    width: int
    height: int
    steps: int
    guidance_scale: float
    sampler: str
    schedule: str


class ModelCard(TypedDict):
    """A model of the catalogue."""

    id: Annotated[str, says("Its name, which requests give as `model`.")]
    object: Literal["model"]
    created: int
    owned_by: str
    family: str
    model_hash: Annotated[str | None, says("SHA-256 of its weights; null until it is known.")]
    aliases: Annotated[Sequence[str], says("Other names that requests may give.")]
    license: str | None
    price: Price
    defaults: ModelDefaults
    native_sizes: Annotated[Sequence[str], says("Those it was trained on.")]
    size_step: Annotated[int, says("Width and height are multiples of it.")]
    max_pixels: int
    max_side: int


class ModelList(TypedDict):
    """The models of the catalogue."""

    object: Literal["list"]
    data: list[ModelCard]
