"""Credit: an owner's balance with its latest entries, and what operators grant."""

from typing import Annotated, Any, NotRequired, TypedDict

from litestar import Controller, Request, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter

from pipelines.errors import InvalidRequest
from server.body import SMALL_JSON_BYTES, read_json
from server.client_key import HEADER, MAX_CHARACTERS
from server.errors import Forbidden, UnknownField
from server.identity.caller import Caller
from server.identity.guard import OPERATOR
from server.playground import iso
from server.schemas import Moment, Success, documents, says, success
from server.state import Services
from storage.errors import NotEnoughCredit, ReferenceReused
from storage.money import to_amount, to_micros
from storage.records import CreditEntry, EntryKind

MAX_AMOUNT = 10**9
MAX_TEXT = 256
FIELDS = ("owner", "amount", "note", "reference")


class Entry(TypedDict):
    """One change of a balance."""

    id: int
    kind: EntryKind
    amount: Annotated[float, says("What the balance changed by.")]
    balance: Annotated[float, says("What it was afterwards.")]
    jobId: Annotated[str | None, says("The job it was for.")]
    note: str | None
    reference: Annotated[str | None, says("What its operator calls it.")]
    createdAt: Moment


class Grant(Entry):
    """What an operator added to a balance, or took back."""

    owner: str


class NextPage(TypedDict):
    """Where the list goes on."""

    next_cursor: Annotated[str | None, says("The `cursor` of the next page; null on the last.")]


class Ledger(TypedDict):
    """An owner's balance and its latest entries, the newest first."""

    owner: str
    enabled: Annotated[bool, says("Whether jobs are paid for from balances.")]
    balance: Annotated[float, says("What can still be spent.")]
    reserved: Annotated[float, says("What open jobs are expected to cost, which is off the balance already.")]
    entries: list[Entry]
    pagination: NextPage


class NewGrant(TypedDict):
    """What an operator grants."""

    owner: Annotated[str, says("Whom the credit is for.", minLength=1, maxLength=MAX_TEXT)]
    amount: Annotated[
        float, says("In whole millionths, not 0; below 0 it takes back.", minimum=-MAX_AMOUNT, maximum=MAX_AMOUNT)
    ]
    note: NotRequired[Annotated[str | None, says("What for.", maxLength=MAX_TEXT)]]
    reference: NotRequired[
        Annotated[str | None, says("What it is called: the same again is the same grant.", maxLength=MAX_CHARACTERS)]
    ]


class Credits(Controller):
    """The ledger."""

    path = "/api/v1/credits"
    tags = ["credits"]

    @get(opt=documents(raises=(Forbidden,)))
    async def credits(
        self,
        services: NamedDependency[Services],
        caller: NamedDependency[Caller],
        owner: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        cursor: FromQuery[str | None] = None,
    ) -> Success[Ledger]:
        """The caller's balance and its latest entries; for operators, anybody's."""
        owner_id = owner_asked_for(caller, owner)
        page = await services.credits.page(owner_id, limit, _cursor(cursor))
        data: Ledger = {
            "owner": owner_id,
            "enabled": services.settings.credits == "on",
            "balance": to_amount(page.balance),
            "reserved": to_amount(page.reserved),
            "entries": [_told(entry) for entry in page.entries],
            "pagination": {"next_cursor": None if page.cursor is None else str(page.cursor)},
        }
        return success(data)

    @post(
        opt=OPERATOR
        | documents(
            body=NewGrant,
            example={"owner": "ann", "amount": 5},
            raises=(UnknownField, ReferenceReused),
            reads=(HEADER,),
        )
    )
    async def grant(self, request: Request[Any, Any, Any], services: NamedDependency[Services]) -> Success[Grant]:
        """Add to an owner's balance, or take back from it; the same reference again is the same grant."""
        asked = await read_json(request, SMALL_JSON_BYTES)
        owner, amount, note, reference = _grant(asked, request.headers.get(HEADER.lower()))
        try:
            entry = await services.credits.grant(owner, amount, note, reference)
        except NotEnoughCredit as error:
            balance = f"the balance of {owner[:80]!r} is {to_amount(error.balance):g}"
            raise InvalidRequest("amount", f"amount: {balance}; no more than that can be taken back.") from error
        return success(Grant(owner=owner, **_told(entry)))


def owner_asked_for(caller: Caller, owner: str | None) -> str:
    """Whom a request is about: the caller, or whom an operator names. Raises Forbidden."""
    if owner is None or owner == caller.owner_id:
        return caller.owner_id
    if not caller.is_operator:
        raise Forbidden("Only operators may ask about others; leave owner out.")
    return owner


def _cursor(written: str | None) -> int | None:
    """The entry after which a page begins. Raises InvalidRequest."""
    if written is None or (written.isascii() and written.isdecimal() and len(written) <= 15):
        return None if written is None else int(written)
    raise InvalidRequest("cursor", "cursor must be the next_cursor of an answer before.")


def _told(entry: CreditEntry) -> Entry:
    return {
        "id": entry.id,
        "kind": entry.kind,
        "amount": to_amount(entry.amount),
        "balance": to_amount(entry.balance),
        "jobId": entry.job_id,
        "note": entry.note,
        "reference": entry.reference,
        "createdAt": iso(entry.created_at),
    }


def _grant(data: dict[str, Any], key: str | None) -> tuple[str, int, str | None, str | None]:
    """Owner, amount in millionths, note and reference of a grant, checked."""
    for name in data:
        if name not in FIELDS:
            raise UnknownField(name[:80], f"Unknown field {name[:80]!r}. Known: {', '.join(FIELDS)}.")
    owner, note = _text(data, "owner", MAX_TEXT), _text(data, "note", MAX_TEXT)
    reference = _text(data, "reference", MAX_CHARACTERS)
    if owner is None:
        raise InvalidRequest("owner", "owner is required: whom the credit is for.")
    if key is not None and reference is not None:
        raise InvalidRequest("reference", f"Give a reference or the header {HEADER}, not both.")
    reference = reference or _text({HEADER: key}, HEADER, MAX_CHARACTERS)
    return owner, _amount(data.get("amount")), note, reference


def _amount(written: object) -> int:
    """In millionths, of which it must be a whole number."""
    if isinstance(written, int | float) and not isinstance(written, bool) and 0 < abs(written) <= MAX_AMOUNT:
        amount = to_micros(written)
        if to_amount(amount) == written:
            return amount
    if isinstance(written, str):
        raise InvalidRequest("amount", "amount must be a number, not a string: write it without quotation marks.")
    rule = f"a number up to {MAX_AMOUNT}, not 0, in whole millionths; below 0 it takes back"
    raise InvalidRequest("amount", f"amount must be {rule}.")


def _text(data: dict[str, Any], field: str, most: int) -> str | None:
    text = data.get(field)
    if text is not None and not (isinstance(text, str) and 1 <= len(text) <= most and "\0" not in text):
        raise InvalidRequest(field, f"{field} must be a string of 1 to {most} characters, none of them NUL.")
    return text
