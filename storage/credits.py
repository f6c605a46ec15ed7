"""The credit ledger: what owners were granted, what is reserved for their jobs, and what they paid.

Every change is an entry, and none is ever changed. The sum of an owner's entries is its balance, which each entry also
tells as it was after it. A job that is handed in reserves what it is expected to cost. At its end that comes back, and
what its pictures cost is settled: so the sum of each kind of entries has a meaning of its own.
"""

from datetime import UTC, datetime

from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from storage.database import Database
from storage.errors import NotEnoughCredit, ReferenceReused
from storage.money import to_micros
from storage.records import CreditEntry, CreditPage, EntryKind, JobRecord, JobStatus, NewJob
from storage.tables import Credit, Job

HELD = (EntryKind.RESERVE, EntryKind.REFUND)
"""What the sum of these entries lacks is reserved."""


class Credits:
    """The ledger as operators and owners see it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def balance(self, owner_id: str) -> int:
        """What an owner may still reserve, in millionths."""
        async with self._database.read() as session:
            return await _balance(session, owner_id)

    async def page(self, owner_id: str, limit: int, cursor: int | None = None) -> CreditPage:
        """Entries of an owner, the newest first, from the one after the cursor on."""
        statement = select(Credit).where(Credit.owner_id == owner_id).order_by(col(Credit.id).desc())
        if cursor is not None:
            statement = statement.where(col(Credit.id) < cursor)
        async with self._database.read() as session:
            # One more than a page, to know whether another follows.
            entries = [_record(entry) for entry in await session.exec(statement.limit(limit + 1))]
            balance, reserved = await _balance(session, owner_id), -await _sum(session, Credit.owner_id == owner_id)
        page = entries[:limit]
        return CreditPage(page, balance, reserved, page[-1].id if len(entries) > limit else None)

    async def grant(self, owner_id: str, amount: int, note: str | None, reference: str | None) -> CreditEntry:
        """Add to a balance, or take back from it, in millionths.

        With a reference that was used before, the entry of that time is returned.
        Raises ReferenceReused when that was another grant; NotEnoughCredit when the balance would fall below zero.
        """
        async with self._database.write() as session:
            if reference is not None:
                known = (await session.exec(select(Credit).where(Credit.reference == reference))).one_or_none()
                if known is not None and (known.owner_id, known.amount, known.note) != (owner_id, amount, note):
                    raise ReferenceReused(reference)
                if known is not None:
                    return _record(known)
            entry = await _append(session, owner_id, EntryKind.GRANT, amount, note=note, reference=reference)
            return _record(entry)


async def check(session: AsyncSession, job: NewJob | JobRecord) -> None:
    """Raise NotEnoughCredit if the owner of a job cannot pay what it is expected to cost."""
    needed, balance = to_micros(job.expected_cost), await _balance(session, job.owner_id)
    if needed > balance:
        raise NotEnoughCredit(balance, needed)


async def reserve(session: AsyncSession, job: Job) -> None:
    """Set aside what a job is expected to cost. Raises NotEnoughCredit."""
    if amount := to_micros(job.expected_cost):
        await _append(session, job.owner_id, EntryKind.RESERVE, -amount, job_id=job.id)


async def close(session: AsyncSession, job: Job) -> None:
    """After a job's end: what was reserved for it comes back, and what its pictures cost is paid.

    Where nothing was reserved, nothing is paid: it was handed in by an operator, or before credits were in use.
    """
    reserved = -await _sum(session, Credit.job_id == job.id)
    if not reserved:
        return
    await _append(session, job.owner_id, EntryKind.REFUND, reserved, job_id=job.id, note=job.error_code or job.status)
    if job.status is JobStatus.COMPLETED and (cost := to_micros(job.cost)):
        await _append(session, job.owner_id, EntryKind.SETTLE, -cost, job_id=job.id)


async def _append(
    session: AsyncSession,
    owner_id: str,
    kind: EntryKind,
    amount: int,
    *,
    job_id: str | None = None,
    note: str | None = None,
    reference: str | None = None,
) -> Credit:
    """Write one entry. There is one writer at a time, so the balance it builds on is the last."""
    balance = await _balance(session, owner_id)
    if balance + amount < 0:
        raise NotEnoughCredit(balance, -amount)
    entry = Credit(
        owner_id=owner_id,
        job_id=job_id,
        kind=kind,
        amount=amount,
        balance=balance + amount,
        note=note,
        reference=reference,
        created_at=datetime.now(UTC),
    )
    session.add(entry)
    await session.flush()
    return entry


async def _balance(session: AsyncSession, owner_id: str) -> int:
    last = select(Credit.balance).where(Credit.owner_id == owner_id).order_by(col(Credit.id).desc()).limit(1)
    return (await session.exec(last)).one_or_none() or 0


async def _sum(session: AsyncSession, whose: bool) -> int:
    """Of the entries that hold and release reservations."""
    held = select(func.coalesce(func.sum(Credit.amount), 0)).where(whose, col(Credit.kind).in_(HELD))
    return (await session.exec(held)).one()


def _record(entry: Credit) -> CreditEntry:
    return CreditEntry(**entry.model_dump() | {"kind": EntryKind(entry.kind)})
