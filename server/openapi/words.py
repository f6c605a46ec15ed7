"""What the OpenAPI document says in words: its introduction, its tags, and what the headers mean."""

INTRODUCTION = """\
Darkroom makes pictures with SDXL and SD3: many people's together, one denoising step at a time.

```sh
curl -s http://127.0.0.1:8000/v1/images/generations -H 'Content-Type: application/json' -d '{"prompt": "a lighthouse"}'
```

| prefix | for | answers |
| --- | --- | --- |
| `/v1` | programs written for OpenAI's Images API | OpenAI's shapes, with fields of our own beside them |
| `/api/v1` | applications: jobs, live events, the queue, figures | `{"success": true, "data": ...}` |
| `/api/images` | the playground frontend: the history | plain objects |
| `/media` | pictures and thumbnails | files |

Every error under `/v1` is an `OpenAIError`, every other an `ApplicationError`. Its `code` is for programs; its message
says what was wrong, what is allowed, and what to do. A method that a route does not take is 405 with `Allow`, and a
path that nothing is served under is 404. Every answer carries `x-request-id`. A trailing slash never matters.

Bodies are JSON, declared as such. `null` means that a field is not given.
"""

TAGS = {
    "openai": "OpenAI's Images API. Its clients work once their base URL is this server's `/v1`.",
    "jobs": "Pictures that are fetched later. An accepted job is on the disk: neither a stop nor a crash loses it.",
    "events": (
        "What happens to jobs, as it happens: server-sent events here, the same over the WebSocket `/ws`. An event is"
        " `queued`, `started`, `progress`, `completed`, `failed` or `cancelled`, with the job as its data (`JobFacts`),"
        " or, with `previews`, `preview`. The present state comes first."
    ),
    "images": "The history of finished pictures.",
    "credits": "Balances that jobs are paid for from, and every change of them.",
    "webhooks": "Endpoints of yours that are told of events, signed as Standard Webhooks say.",
    "hub": "Events of other programs, which ask for pictures.",
    "people": "Who asks, and the keys by which the server knows people.",
    "media": "The pictures themselves. A file never changes under its name.",
    "server": "What the server is doing, and what it can do.",
    "stats": "What was made, how long it took, what it cost.",
    "health": "For supervisors, load balancers and Prometheus.",
}

HEADERS = {
    "x-request-id": "The request's name in the server's log.",
    "Location": "Where to look for the job.",
    "Retry-After": "In how many seconds to come back, at most 120.",
    "x-ratelimit-limit-requests": "How many requests the caller has in an hour; absent without such a limit.",
    "x-ratelimit-remaining-requests": "How many of them are left.",
    "x-ratelimit-reset-requests": "In what time all of them are there again, such as `6m0s`.",
    "x-should-retry": "`false` where sending the same again cannot help; OpenAI's clients heed it.",
    "Idempotency-Key": (
        "The client's name for this request, 1 to 255 characters: sent again with the same body within 24 hours, it is"
        " the same job."
    ),
    "Prefer": "`respond-async` answers 202 with the job as soon as it is queued, like the field `async`.",
    "traceparent": "The W3C trace that this request belongs to.",
    "ETag": "Names the file's bytes.",
    "Cache-Control": "How long the answer may be kept.",
    "Accept-Ranges": "`bytes`: parts of the file can be asked for.",
    "Content-Range": "Which bytes these are, and of how many.",
    "If-None-Match": "An `ETag`: answer 304 where the file still has it.",
    "If-Range": "An `ETag`: heed `Range` only where the file still has it.",
    "Range": "One range of bytes, such as `bytes=0-1023`; several mean the whole file.",
}

PARAMETERS = {
    "job_id": "A job's `id`.",
    "webhook_id": "A webhook's `id`.",
    "key_id": "A key's `id`.",
    "owner": "Only this owner's.",
    "everyone": "Whether everybody's are meant; for operators.",
    "image_id": "A picture's `id`.",
    "name": "A model's name or alias; it may hold a slash, as such or as `%2F`.",
    "number": "An image's `id` in the queue.",
    "kind": "`generated_images` or `thumbnails`.",
    "year": "The year that the picture was made in.",
    "month": "The month, of two digits.",
    "file": "The picture's `id` and `.png`, `.jpeg` or `.webp`.",
    "page": "Which page, from 1.",
    "perPage": "How many a page has.",
    "limit": "How many at most.",
    "cursor": "The `next_cursor` of the page before.",
    "status": "Only jobs of this status; it may be given several times.",
    "session_id": "Only what was asked for with this `session_id`.",
    "days": "Of how many days, up to now.",
    "previews": "Whether to send what the pictures look like by now, at most once a second and job.",
    "Last-Event-ID": "The `id` of the last event received: what ended since is told first. Browsers send it unasked.",
}
