"""Events as they are sent: CloudEvents 1.0 in JSON, small enough for any receiver."""

from datetime import datetime
from typing import Any

import msgspec

from server.identity.links import Links
from server.playground import image_facts, iso
from storage.records import ImageRecord
from storage.webhook_records import EventRecord, EventType

CONTENT_TYPE = "application/cloudevents+json"

MAX_PROMPT_CHARACTERS = 1000
"""Of a prompt in an event. Standard Webhooks asks for bodies below 20 kB; JSON may need six bytes for a character."""


def message(event: EventRecord, public_url: str, links: Links) -> bytes:
    """An event's body, the same at every attempt but for addresses of pictures, which are signed anew.

    Args:
        public_url: where the server is reached from outside; empty where nobody said.
        links: signs the addresses of pictures.
    """
    envelope = {
        "specversion": "1.0",
        "id": event.id,
        "source": public_url or "darkroom",
        "type": event.type,
        "subject": event.subject,
        "time": iso(event.created_at),
        "datacontenttype": "application/json",
        "data": _data(event, public_url.rstrip("/"), links),
    }
    return msgspec.json.encode(envelope)


def _data(event: EventRecord, public_url: str, links: Links) -> dict[str, Any]:
    if event.type is EventType.TEST:
        return {"message": "This is a test; nothing happened."}
    failed = event.type is EventType.FAILED
    facts = _job(event.facts) if failed else _image(event.facts, public_url, links)
    return {"owner": event.owner_id} | {name: _short(name, value) for name, value in facts.items()}


def _image(facts: dict[str, Any], public_url: str, links: Links) -> dict[str, Any]:
    """An image as the history tells it, with its absolute address where that is known."""
    told = image_facts(msgspec.convert(facts, ImageRecord), links)
    return {**told, **({"url": public_url + told["imageUrl"]} if public_url else {})}


def _job(facts: dict[str, Any]) -> dict[str, Any]:
    """A job that ended without all of its pictures. One that was cancelled has no error of its own."""
    return {
        "jobId": facts["id"],
        "status": facts["status"],
        "prompt": facts["prompt"],
        "negativePrompt": facts["negative_prompt"],
        "model": facts["model"],
        "imageCount": facts["image_count"],
        "error": {
            "code": facts["error_code"] or facts["status"],
            "message": (facts["error_message"] or f"The job was {facts['status']}.")[:MAX_PROMPT_CHARACTERS],
        },
        "createdAt": iso(datetime.fromisoformat(facts["created_at"])),
    }


def _short(name: str, value: Any) -> Any:
    return value[:MAX_PROMPT_CHARACTERS] if name in ("prompt", "negativePrompt") else value
