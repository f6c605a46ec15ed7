"""The real server with a fault planted in its engine, as a program: `python -m tests.faulty_server lost|hangs|none`."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import pipelines.device
import server.scheduling.verbs
import server.watchdog
from pipelines.denoising import Denoising
from pipelines.families.sdxl import SDXL
from server.cli import main

predict = SDXL.predict


def lose(family: SDXL, batch: Sequence[Denoising]) -> Any:
    if any(image.evaluation == 2 for image in batch):
        # What a failed assertion in a kernel looks like from here: this call fails, and every one after it.
        pipelines.device.responds = lambda device: False
        raise RuntimeError("CUDA error: device-side assert triggered")
    return predict(family, batch)


def hang(family: SDXL, batch: Sequence[Denoising]) -> Any:
    if any(image.evaluation == 2 for image in batch):
        time.sleep(3600)
    return predict(family, batch)


if __name__ == "__main__":
    server.scheduling.verbs.LEAST_PATIENCE = 0.5
    server.watchdog.LOOK_SECONDS = 0.05
    SDXL.predict = {"lost": lose, "hangs": hang, "none": predict}[sys.argv[1]]  # type: ignore[method-assign, assignment]
    main(["serve", "--port", "0"])
