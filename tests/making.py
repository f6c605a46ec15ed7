"""Making one picture with an engine, from its prompt to its pixels."""

from pipelines.catalog import ModelEntry
from pipelines.denoising import Denoising
from pipelines.engine import Engine
from pipelines.request import Wishes, settle


def picture(engine: Engine, entry: ModelEntry, prompt: str = "a hat") -> bytes:
    """The pixels of two steps; the model must be there."""
    requests = [settle(Wishes(prompt, steps=2), entry, seed=7)]
    (image,) = engine.begin(entry, requests, engine.encode(entry, requests))
    assert isinstance(image, Denoising), image
    while not image.finished:
        assert engine.step(entry, [image]) == [None]
    (made,) = engine.finish(entry, [image])
    assert not isinstance(made, Exception), made
    return made.tobytes()
