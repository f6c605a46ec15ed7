"""The errors pipelines can raise; none of them knows HTTP.

PipelineError
├── CatalogError          models.toml says something it may not (place and remedy in the message)
├── DeviceError           the device asked for is not here
├── DeviceLost            the device computes nothing any more, until the process is started anew
├── CheckpointError       a checkpoint is missing, damaged, of another family or not safetensors
│   └── IncompleteCheckpoint   files of it are not there
├── NotHashed             a file's hash is not known, and it was not to be read
├── NoRoom                a model does not fit beside those at work, and may once they are done
├── NotRead               a model that was thought to be in memory must be read first
├── InvalidRequest        one field of a request breaks a rule
│   └── UnknownModel      the model named is not in the catalogue
├── PreviewFailed         there is no preview of a picture; the picture itself goes on
└── ImageFailed           this one image could not be made
    ├── NotANumber        its latents or pixels are not finite
    └── ImageTooLarge     it does not fit in the device's memory, even alone
"""


class PipelineError(Exception):
    """Everything this package raises on purpose."""


class CatalogError(PipelineError):
    """models.toml cannot be used; the message says where and what to write instead."""


class DeviceError(PipelineError):
    """There is no such device; the message says which there are."""


class DeviceLost(PipelineError):
    """The device fails or hangs for good, and every image with it: only a new process gets it back."""


class CheckpointError(PipelineError):
    """A checkpoint cannot be loaded; the message names the file and the remedy."""


class IncompleteCheckpoint(CheckpointError):
    """Files of a checkpoint are not there; a hub's are downloaded."""


class NotHashed(PipelineError):
    """The hash of a file of weights is not known."""


class NoRoom(PipelineError):
    """The device lacks the memory for another model while others are at work on it."""


class NotRead(PipelineError):
    """A model is neither on the device nor parked in host memory."""


class InvalidRequest(PipelineError):
    """A request's field breaks a rule.

    Args:
        field: the field's name as a client writes it.
        message: the rule that was broken and what is allowed.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class UnknownModel(InvalidRequest):
    """The catalogue has no such model."""

    def __init__(self, message: str) -> None:
        super().__init__("model", message)


class PreviewFailed(PipelineError):
    """There is no preview; the picture it would have been of goes on all the same."""


class ImageFailed(PipelineError):
    """This image failed; its neighbours in the batch did not."""


class NotANumber(ImageFailed):
    """The image's latents or pixels hold NaN or infinity."""


class ImageTooLarge(ImageFailed):
    """The image does not fit in the device's memory, even in a batch of its own."""
