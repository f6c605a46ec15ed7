"""What the scheduler tells whoever measures it. Nothing here by itself: `server/metrics.py` listens."""

from pipelines.request import BatchKey


class Meter:
    """Hears of everything the scheduler does, on the event loop; all durations are in seconds."""

    def waited(self, priority: int, seconds: float) -> None:
        """An image's first work begins, so long after it was submitted."""

    def encoded(self, key: BatchKey, images: int, seconds: float) -> None:
        """The prompts of some images were encoded and their noise drawn."""

    def stepped(self, key: BatchKey, images: int, rows: int, seconds: float) -> None:
        """A forward pass and the samplers' steps after it."""

    def decoded(self, key: BatchKey, images: int, seconds: float) -> None:
        """Some images became pictures."""

    def loaded(self, model: str, seconds: float) -> None:
        """A model came onto the device, from its files or from host memory."""

    def unloaded(self, model: str) -> None:
        """A model left the device."""

    def failed(self, cause: str) -> None:
        """An image failed, by the class of its error."""

    def refused(self) -> None:
        """A request was told to come back later."""
