"""What the scheduler tells whoever measures it. Nothing here by itself: `server/metrics.py` listens."""

from pipelines.request import BatchKey


class Meter:
    """Hears of everything that is done, on the event loop; all durations are in seconds."""

    def waited(self, priority: int, seconds: float) -> None:
        """An image's first work begins, so long after it was submitted."""

    def encoded(self, key: BatchKey, images: int, seconds: float) -> None:
        """The prompts of some images were encoded and their noise drawn."""

    def stepped(self, key: BatchKey, images: int, rows: int, seconds: float, flops: float) -> None:
        """A forward pass of so many operations (0 where they were not counted) and the samplers' steps after it."""

    def decoded(self, key: BatchKey, images: int, seconds: float) -> None:
        """Some images became pictures."""

    def loaded(self, model: str, parked: bool, seconds: float) -> None:
        """A model came onto the device, from host memory if it was parked there, else from its files."""

    def unloaded(self, model: str, parked: bool) -> None:
        """A model left the device, told to or to make room; if it was parked, for host memory, else for good."""

    def failed(self, cause: str) -> None:
        """An image failed, by the class of its error."""

    def refused(self) -> None:
        """A request was told to come back later."""
