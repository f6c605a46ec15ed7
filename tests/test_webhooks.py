"""Webhooks: events are written with what they tell of, and delivered at least once, whatever the endpoints do."""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlmodel import select, update
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from server.identity.links import Links
from server.outbound.client import Outbound, Reply
from server.webhooks.messages import message
from server.webhooks.schedule import DELAYS, MOST_RETRY_AFTER, SCATTER, answered, unanswered
from storage.database import Database
from storage.errors import DatabaseDamaged, DiskFull
from storage.images import ImageStore
from storage.jobs import JobStore
from storage.outbox import KEPT
from storage.tables import Delivery, Event
from storage.webhook_records import DeliveryStatus, EventRecord, EventType, WebhookRecord
from storage.webhooks import ROTATION, DeliveryStore, WebhookStore
from tests.fake_server import PATIENCE
from tests.hooks import HERE, count, delivering, endpoint, until
from tests.receiver import Received, receiving, status
from tests.storage_fakes import child, finished_job, new_image, new_job, opened

pytestmark = pytest.mark.anyio

PLAIN = Links(None, 1)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with opened(tmp_path) as database:
        yield database


async def written(database: Database) -> list[tuple[str, str]]:
    """The types and subjects of all events, in the order in which they were written."""
    async with database.read() as session:
        found = await session.exec(
            select(Event).join(Delivery, Delivery.event_id == Event.id).order_by(Delivery.number)  # type: ignore[arg-type]
        )
        return [(event.type, event.subject) for event in found]


def verified(request: Received, webhook: WebhookRecord) -> dict[str, Any]:
    event: dict[str, Any] = Verifier(webhook.secret).verify(request.body, request.headers)
    return event


def record(event: Event) -> EventRecord:
    return EventRecord(**event.model_dump() | {"type": EventType(event.type)})


def told(request: Received) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(request.body)
    return event


async def deliveries(database: Database, webhook: WebhookRecord) -> list[tuple[DeliveryStatus, int, int | None]]:
    found = await WebhookStore(database).deliveries(webhook.id, 100)
    return [(one.status, one.attempts, one.status_code) for one in found]


async def settled(database: Database, webhook: WebhookRecord, attempts: int) -> None:
    """Wait until the newest delivery had so many attempts."""
    async with asyncio.timeout(PATIENCE):
        while (await deliveries(database, webhook))[0][1] < attempts:
            await asyncio.sleep(0.005)


# What is written, and when.


async def test_each_image_of_a_job_is_an_event(database: Database) -> None:
    await endpoint(database)
    images = [new_image(index=index) for index in range(2)]
    await finished_job(database, *images)
    assert await written(database) == [("image.generated", image.id) for image in images]


async def test_a_job_without_all_of_its_pictures_is_one_event(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.outbox.BATCH", 2)
    await endpoint(database)
    jobs = JobStore(database)
    ids = [(await jobs.insert(new_job(attached=bool(index)))).id for index in range(6)]
    await jobs.fail(ids[0], "disk_full", "no room")
    await jobs.cancel("ann", ids[1])
    await jobs.start(ids[2], "boot")
    image = new_image()
    await jobs.complete(ids[2], "boot", [image], error_code="partly_failed", error_message="image 1: no")
    await jobs.start(ids[3], "boot")
    await jobs.requeue(ids[3], "lost", lost=False)
    assert sorted(await jobs.clear("ann")) == sorted(ids[3:])
    events = await written(database)
    assert events[:4] == [
        ("image.failed", ids[0]),
        ("image.failed", ids[1]),
        ("image.generated", image.id),
        ("image.failed", ids[2]),
    ]
    assert events[4:] == [("image.failed", id) for id in ids[3:]]


async def test_jobs_that_a_dead_run_left_are_told_of(database: Database) -> None:
    await endpoint(database)
    jobs = JobStore(database)
    waited = await jobs.insert(new_job())
    spent = await jobs.insert(new_job(attached=False, max_attempts=1))
    again = await jobs.insert(new_job(attached=False))
    for job in (spent, again):
        await jobs.start(job.id, "the last boot")
    recovered = await jobs.recover("this boot")
    assert (recovered.failed, recovered.requeued) == (2, 1)
    assert await written(database) == [("image.failed", waited.id), ("image.failed", spent.id)]


async def test_an_engine_that_is_lost_once_too_often_is_told_of(database: Database) -> None:
    await endpoint(database)
    jobs = JobStore(database)
    job = await jobs.insert(new_job(max_attempts=1))
    await jobs.start(job.id, "boot")
    await jobs.requeue(job.id, "lost", lost=True)
    assert await written(database) == [("image.failed", job.id)]


async def test_a_deleted_image_is_an_event(database: Database) -> None:
    await endpoint(database)
    await finished_job(database, image := new_image())
    await ImageStore(database).delete("ann", image.id)
    assert await written(database) == [("image.generated", image.id), ("image.deleted", image.id)]


@pytest.mark.parametrize(
    "facts", [None, {"enabled": False}, {"types": ["image.deleted", "image.failed"]}, {"owner_id": "bob"}]
)
async def test_what_nobody_wants_is_not_written(database: Database, facts: dict[str, Any] | None) -> None:
    if facts is not None:
        await endpoint(database, **facts)
    database.events_written.clear()
    await finished_job(database, new_image())
    assert (await count(database, Event), await count(database, Delivery)) == (0, 0)
    assert not database.events_written.is_set()


async def test_each_endpoint_hears_what_it_wants(database: Database) -> None:
    hers = await endpoint(database, owner_id="ann", types=["image.generated"])
    his = await endpoint(database, owner_id="bob")
    all_of_it = await endpoint(database)
    await finished_job(database, new_image())
    await finished_job(database, image := new_image(), owner_id="bob")
    await ImageStore(database).delete("bob", image.id)
    heard = [len(await deliveries(database, webhook)) for webhook in (hers, his, all_of_it)]
    assert heard == [1, 2, 3]
    assert await count(database, Event) == 3


async def test_an_event_is_there_with_its_row_or_not_at_all(database: Database) -> None:
    await endpoint(database)
    jobs = JobStore(database)
    job = await jobs.insert(new_job())
    await jobs.start(job.id, "boot")
    database.events_written.clear()
    with pytest.raises(IntegrityError):
        await jobs.complete(job.id, "boot", [new_image(), new_image()])  # two of one index
    assert (await count(database, Event), await count(database, Delivery)) == (0, 0)
    assert not database.events_written.is_set()


async def test_old_events_are_forgotten_when_others_are_written(database: Database) -> None:
    await endpoint(database)
    await finished_job(database, new_image())
    async with database.write() as session:
        await session.exec(update(Event).values(created_at=datetime.now(UTC) - KEPT))
    await finished_job(database, image := new_image())
    assert await written(database) == [("image.generated", image.id)]
    assert await count(database, Delivery) == 1


async def test_what_is_to_be_delivered_goes_with_its_endpoint(database: Database) -> None:
    webhook = await endpoint(database)
    await finished_job(database, new_image())
    await WebhookStore(database).delete(webhook.id)
    assert await count(database, Delivery) == 0
    assert await DeliveryStore(database).waiting() == []


# What is sent.


async def test_a_message_is_signed_as_standard_webhooks_says_and_is_a_cloud_event(database: Database) -> None:
    with receiving() as receiver:
        webhook = await endpoint(database, receiver.url)
        async with delivering(database):
            job_id = await finished_job(database, image := new_image())
            await until(lambda: receiver.received)
    (request,) = receiver.received
    event = verified(request, webhook)
    data = event.pop("data")
    assert event.pop("time").endswith("Z")
    assert event == {
        "specversion": "1.0",
        "id": request.headers["webhook-id"],
        "source": "darkroom",
        "type": "image.generated",
        "subject": image.id,
        "datacontenttype": "application/json",
    }
    assert (data["owner"], data["id"], data["jobId"], data["prompt"]) == ("ann", image.id, job_id, image.prompt)
    assert data["imageUrl"].startswith("/media/generated_images/") and "url" not in data
    assert (request.path, request.headers["content-type"]) == ("/hook?x=1", "application/cloudevents+json")
    for other in (await endpoint(database), await endpoint(database)):
        with pytest.raises(WebhookVerificationError):
            verified(request, other)
    with pytest.raises(WebhookVerificationError):
        Verifier(webhook.secret).verify(request.body + b" ", request.headers)


async def test_a_failure_is_told_with_its_reason(database: Database) -> None:
    with receiving() as receiver:
        webhook = await endpoint(database, receiver.url)
        async with delivering(database):
            jobs = JobStore(database)
            failed, cancelled = [(await jobs.insert(new_job(image_count=2))).id for _ in range(2)]
            await jobs.fail(failed, "disk_full", "no room")
            await jobs.cancel("ann", cancelled)
            await until(lambda: len(receiver.received) == 2)
    first, second = (verified(request, webhook)["data"] for request in receiver.received)
    assert (first["jobId"], first["imageCount"], first["status"]) == (failed, 2, "failed")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["createdAt"])
    assert first["error"] == {"code": "disk_full", "message": "no room"}
    assert (second["jobId"], second["error"]["code"], second["status"]) == (cancelled, "cancelled", "cancelled")


@pytest.mark.parametrize("character", ["a", "\0", "é", "字", "🎩", '"', "\\", "<"])
async def test_the_longest_prompts_leave_a_message_below_20_kb(database: Database, character: str) -> None:
    await endpoint(database)
    long = character * 32_000
    await finished_job(database, new_image(prompt=long, negative_prompt=long, model="m" * 100))
    jobs = JobStore(database)
    failed = await jobs.insert(new_job(prompt=long, negative_prompt=long))
    await jobs.fail(failed.id, "generation_failed", long)
    async with database.read() as session:
        for event in await session.exec(select(Event)):
            body = message(record(event), "https://pictures.example.org/" + "x" * 1000, PLAIN)
            assert len(body) < 20_000
            assert json.loads(body)["data"]["prompt"] == character * 1000


async def test_where_the_server_is_reached_from_outside_an_image_has_an_address(database: Database) -> None:
    await endpoint(database)
    await finished_job(database, new_image())
    async with database.read() as session:
        event = (await session.exec(select(Event))).one()
    body = json.loads(message(record(event), "https://pictures.example.org/", PLAIN))
    assert body["source"] == "https://pictures.example.org/"
    assert body["data"]["url"] == "https://pictures.example.org" + body["data"]["imageUrl"]


async def test_a_rotated_secret_signs_along_for_a_day(database: Database) -> None:
    with receiving() as receiver:
        webhook = await endpoint(database, receiver.url)
        rotated = await WebhookStore(database).change(webhook.id, {}, "whsec_" + "QUFB" * 10)
        assert rotated.secret != webhook.secret
        async with delivering(database):
            await finished_job(database, new_image())
            await until(lambda: receiver.received)
    (request,) = receiver.received
    assert verified(request, webhook) == verified(request, rotated)
    assert rotated.secrets_at(datetime.now(UTC) + ROTATION) == [rotated.secret]


# What endpoints do.


async def test_a_failed_delivery_is_tried_ten_times_and_given_up(database: Database) -> None:
    with receiving(status(500)) as receiver:
        webhook = await endpoint(database, receiver.url)
        async with delivering(database) as post:
            await finished_job(database, new_image())
            for attempt, delay in enumerate(DELAYS, 1):
                await settled(database, webhook, attempt)
                assert len(receiver.received) == attempt
                post.pass_time(seconds=delay.total_seconds() * (1 + SCATTER) + 1)
            await settled(database, webhook, 10)
            assert await deliveries(database, webhook) == [(DeliveryStatus.FAILED, 10, 500)]
            post.pass_time(days=3)
            receiver.answers = [status(204)]
            await finished_job(database, new_image())
            await until(lambda: len(receiver.received) == 11)
            await settled(database, webhook, 1)
    assert len(set(receiver.ids[:10])) == 1, "one message has one id at every attempt"
    times = [int(request.headers["webhook-timestamp"]) for request in receiver.received]
    assert times == sorted(times) and len(set(times)) == 11, "each attempt has its own time"
    assert sum(DELAYS, timedelta()) == timedelta(hours=75, minutes=35, seconds=5)
    assert (await WebhookStore(database).get(webhook.id)).trouble is None, "it was delivered again"


async def test_an_endpoint_to_which_something_was_given_up_is_marked(database: Database) -> None:
    with receiving(status(500)) as receiver:
        webhook = await endpoint(database, receiver.url)
        await finished_job(database, new_image())
        async with database.write() as session:
            await session.exec(update(Delivery).values(attempts=9))
        async with delivering(database):
            await settled(database, webhook, 10)
    found = await WebhookStore(database).get(webhook.id)
    assert (found.trouble, found.enabled) == ("The endpoint answered 500.", True)
    mended = await WebhookStore(database).change(webhook.id, {"enabled": True})
    assert mended.trouble is None


async def test_410_turns_an_endpoint_off(database: Database) -> None:
    with receiving(status(410)) as receiver:
        webhook = await endpoint(database, receiver.url)
        async with delivering(database) as post:
            await finished_job(database, new_image(), new_image(index=1))
            await until(lambda: receiver.received)
            async with asyncio.timeout(PATIENCE):
                while (await WebhookStore(database).get(webhook.id)).enabled:
                    await asyncio.sleep(0.005)
            await finished_job(database, new_image())
            post.pass_time(days=1)
            assert await deliveries(database, webhook) == [
                (DeliveryStatus.PENDING, 0, None),
                (DeliveryStatus.FAILED, 1, 410),
            ]
            assert len(receiver.received) == 1
            receiver.answers = [status(204)]
            await WebhookStore(database).change(webhook.id, {"enabled": True})
            await until(lambda: len(receiver.received) == 2)


@pytest.mark.parametrize("code", [300, 301, 302, 303, 307, 308, 400, 401, 404, 429, 500, 503])
async def test_whatever_is_no_success_is_tried_again(database: Database, code: int) -> None:
    with receiving(status(code, Location="http://127.0.0.1:1/"), status(200)) as receiver:
        webhook = await endpoint(database, receiver.url)
        async with delivering(database) as post:
            await finished_job(database, new_image())
            await settled(database, webhook, 1)
            assert await deliveries(database, webhook) == [(DeliveryStatus.PENDING, 1, code)]
            post.pass_time(seconds=6)
            await settled(database, webhook, 2)
            assert await deliveries(database, webhook) == [(DeliveryStatus.DELIVERED, 2, 200)]
    assert receiver.ids[0] == receiver.ids[1]


async def test_retry_after_holds_back_everything_for_that_endpoint_and_keeps_the_order(database: Database) -> None:
    with receiving(status(429, Retry_After="600"), status(204)) as receiver:
        webhook = await endpoint(database, receiver.url)
        async with delivering(database) as post:
            await finished_job(database, first := new_image())
            await settled(database, webhook, 1)
            await finished_job(database, second := new_image())
            post.pass_time(seconds=500)
            await finished_job(database, third := new_image())
            assert (await DeliveryStore(database).next(webhook.id)).at > post.clock()  # type: ignore[union-attr]
            assert len(receiver.received) == 1
            post.pass_time(seconds=101)
            await until(lambda: len(receiver.received) == 4)
    subjects = [told(request)["subject"] for request in receiver.received]
    assert subjects[0] == first.id and set(subjects[1:]) == {first.id, second.id, third.id}
    assert subjects.index(second.id) < subjects.index(third.id)


async def test_events_reach_an_endpoint_in_their_order(database: Database) -> None:
    with receiving() as receiver:
        await endpoint(database, receiver.url)
        images = [new_image() for _ in range(8)]
        for image in images[:4]:
            await finished_job(database, image)
        async with delivering(database):
            for image in images[4:]:
                await finished_job(database, image)
            await until(lambda: len(receiver.received) == 8)
    assert [told(request)["subject"] for request in receiver.received] == [image.id for image in images]


async def test_an_endpoint_that_never_answers_delays_no_other_and_no_stop(database: Database) -> None:
    with receiving() as dead, receiving() as alive:
        dead.answers = [dead.never]
        await endpoint(database, dead.url)
        await endpoint(database, alive.url)
        async with delivering(database):
            await finished_job(database, new_image())
            await until(lambda: dead.received)
            for _ in range(5):
                await finished_job(database, new_image())
            await until(lambda: len(alive.received) == 6)
            assert len(dead.received) == 1, "its first delivery is still under way"


async def test_what_cannot_be_reached_or_may_not_be_is_told(database: Database) -> None:
    with receiving() as receiver:
        gone = receiver.url
    refused = await endpoint(database, "https://127.0.0.2/")
    closed = await endpoint(database, gone)
    async with delivering(database):
        await finished_job(database, new_image())
        for webhook in (refused, closed):
            await settled(database, webhook, 1)
    reasons = [(await WebhookStore(database).deliveries(webhook.id, 1))[0].error for webhook in (refused, closed)]
    assert "no address of the public internet" in str(reasons[0])
    assert "connection failed" in str(reasons[1])


class Breaking(Outbound):
    """A client with a mistake in it."""

    async def post(self, *_: Any) -> Reply:
        raise RuntimeError("a mistake")


async def test_a_mistake_of_our_own_is_logged_and_ends_nothing(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    webhook = await endpoint(database)
    async with delivering(database, Breaking(HERE)):
        await finished_job(database, new_image())
        await settled(database, webhook, 1)
    assert await deliveries(database, webhook) == [(DeliveryStatus.PENDING, 1, None)]
    assert "a mistake" in caplog.text


async def test_an_end_that_cannot_be_written_down_is_kept_until_it_can(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, refused = DeliveryStore.record, []

    async def refusing(*arguments: Any) -> None:
        if len(refused) < 2:
            refused.append(arguments)
            raise DiskFull
        await original(*arguments)

    monkeypatch.setattr(DeliveryStore, "record", refusing)
    monkeypatch.setattr("server.webhooks.dispatcher.FAULT_SECONDS", 0)
    with receiving() as receiver:
        webhook = await endpoint(database, receiver.url)
        async with delivering(database):
            await finished_job(database, new_image())
            await settled(database, webhook, 1)
        assert len(receiver.received) == 1 and len(refused) == 2


@pytest.mark.parametrize("verb", ["waiting", "next", "record"])
@pytest.mark.parametrize("error", [DatabaseDamaged(None, "planted"), RuntimeError("planted")])
async def test_an_error_of_one_endpoint_s_worker_ends_nobody_s(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, verb: str, error: Exception
) -> None:
    original, failures = getattr(DeliveryStore, verb), [error]

    async def failing(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return await original(*arguments)

    monkeypatch.setattr(DeliveryStore, verb, failing)
    monkeypatch.setattr("server.webhooks.dispatcher.MISTAKE_SECONDS", 0)
    with receiving() as receiver:
        webhooks = [await endpoint(database, f"{receiver.url}/{number}") for number in range(2)]
        async with delivering(database):
            await finished_job(database, new_image())
            for webhook in webhooks:
                await settled(database, webhook, 1)
    (told,) = [record for record in caplog.records if record.exc_info]
    assert told.exc_info is not None and told.exc_info[1] is error
    names = ["webhooks:"] if verb == "waiting" else [f"webhook {webhook.id}:" for webhook in webhooks]
    assert told.getMessage().startswith(tuple(names))


async def test_a_stop_in_the_middle_of_writing_down_waits_for_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, reached, go_on = DeliveryStore.record, asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any) -> None:
        reached.set()
        await go_on.wait()
        await original(*arguments)

    monkeypatch.setattr(DeliveryStore, "record", slow)
    with receiving() as receiver:
        webhook = await endpoint(database, receiver.url)
        async with delivering(database):
            await finished_job(database, new_image())
            await reached.wait()
            asyncio.get_running_loop().call_later(0.05, go_on.set)
        assert await deliveries(database, webhook) == [(DeliveryStatus.DELIVERED, 1, 204)]


# What outlasts the server.


async def test_what_is_not_delivered_is_delivered_by_the_next_run(tmp_path: Path) -> None:
    with receiving(status(503), status(204)) as receiver:
        async with opened(tmp_path) as database:
            webhook = await endpoint(database, receiver.url)
            async with delivering(database):
                await finished_job(database, new_image())
                await settled(database, webhook, 1)
        async with opened(tmp_path) as database, delivering(database) as post:
            due = await DeliveryStore(database).next(webhook.id)
            assert due is not None and due.attempts == 1
            assert timedelta(seconds=2) < due.at - datetime.now(UTC) <= DELAYS[0] * (1 + SCATTER)
            post.pass_time(seconds=6)
            await settled(database, webhook, 2)
    assert receiver.ids[0] == receiver.ids[1]


def deliver_and_die(folder: Path, reached: int) -> None:
    """Deliver until an answer has come for the so-manieth time, and die before it is written down."""
    asyncio.run(_deliver_and_die(folder, reached))


async def _deliver_and_die(folder: Path, reached: int) -> None:
    answers = 0

    async def dying(*arguments: Any) -> None:
        nonlocal answers
        answers += 1
        if answers == reached:
            os.kill(os.getpid(), signal.SIGKILL)
        await original(*arguments)

    original, DeliveryStore.record = DeliveryStore.record, dying  # type: ignore[method-assign, assignment]
    async with opened(folder) as database, delivering(database):
        await asyncio.sleep(60)


@pytest.mark.parametrize("reached", [1, 2])
async def test_killed_before_a_delivery_is_written_down_it_is_made_again_under_its_id(
    tmp_path: Path, reached: int
) -> None:
    with receiving() as receiver:
        async with opened(tmp_path) as database:
            webhook = await endpoint(database, receiver.url)
            await finished_job(database, new_image(), new_image(index=1))
        process = child(deliver_and_die, tmp_path, reached)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert len(receiver.received) == reached
        async with opened(tmp_path) as database, delivering(database):
            await settled(database, webhook, 1)
            assert {found[0] for found in await deliveries(database, webhook)} == {DeliveryStatus.DELIVERED}
    assert len(receiver.received) == 3 and len(set(receiver.ids)) == 2
    twice = [request for request in receiver.received if receiver.ids.count(request.headers["webhook-id"]) == 2]
    assert twice[0].body == twice[1].body


# The schedule alone.

NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        ("999999999999999", MOST_RETRY_AFTER.total_seconds()),
        ("Sun, 22 Nov 2026 00:01:00 GMT", 60),
        ("Sat, 21 Nov 2026 00:01:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MOST_RETRY_AFTER.total_seconds()),
        ("-5", None),
        ("soon", None),
        ("١٢", None),
        ("", None),
    ],
)
def test_what_an_endpoint_asks_for_is_bounded(written: str, seconds: float | None) -> None:
    attempt = answered(Reply(503, {"retry-after": written}), 0, NOW)
    assert attempt.next_at is not None
    if seconds is None:
        assert attempt.resume_at is None
    else:
        assert attempt.resume_at == NOW + timedelta(seconds=seconds) <= attempt.next_at


def test_delays_are_scattered_upwards() -> None:
    waits = {unanswered("no", 1, NOW).next_at - NOW for _ in range(50)}  # type: ignore[operator]
    assert len(waits) > 10
    assert all(DELAYS[1] <= wait <= DELAYS[1] * (1 + SCATTER) for wait in waits)


def test_a_success_ends_it() -> None:
    for code in (200, 201, 202, 204, 299):
        assert answered(Reply(code, {}), 3, NOW).status is DeliveryStatus.DELIVERED
