"""The disk's room as the scheduler heeds it: nothing is begun whose picture would find none."""

import asyncio
import logging

from server.scheduling.loop import Scheduler
from storage.room import Room

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0

NO_ROOM = "the disk is full"


async def heed(room: Room, scheduler: Scheduler) -> None:
    """Hold what waits while the last of the disk's room is for what is begun; it goes on by itself."""
    while True:
        exhausted = room.exhausted
        if exhausted != (NO_ROOM in scheduler.pauses):
            megabytes = room.free / 1e6
            if exhausted:
                log.error("the disk has only %.0f MB free: no pictures are begun until it has more", megabytes)
            else:
                log.info("the disk has %.0f MB free again: pictures are begun", megabytes)
            scheduler.pause(exhausted, NO_ROOM)
        await asyncio.sleep(LOOK_SECONDS)
