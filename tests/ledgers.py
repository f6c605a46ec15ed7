"""What must hold of the ledger at every moment, read off the database by plain SQL."""

import sqlite3
from contextlib import closing
from pathlib import Path

from storage.schema import DATABASE_NAME

OPEN_JOBS = """
SELECT coalesce(sum(CAST(round(expected_cost * 1000000) AS INTEGER)), 0) FROM jobs
WHERE owner_id = ? AND status IN ('pending', 'processing') AND id IN (SELECT job_id FROM credits)
"""
MADE = """
SELECT coalesce(sum(CAST(round(cost * 1000000) AS INTEGER)), 0) FROM images
WHERE owner_id = ? AND job_id IN (SELECT job_id FROM credits)
"""


def check_ledger(folder: Path) -> dict[str, int]:
    """Assert that every owner's entries add up, never fell below zero and agree with its jobs; the balances.

    It holds for databases of which every job that has a price was paid for.
    """
    with closing(sqlite3.connect(f"file:{folder / DATABASE_NAME}?mode=ro", uri=True)) as connection:
        entries = connection.execute("SELECT owner_id, kind, amount, balance FROM credits ORDER BY id").fetchall()
        owners = {owner for owner, *_ in entries}
        open_jobs = {owner: connection.execute(OPEN_JOBS, (owner,)).fetchone()[0] for owner in owners}
        made = {owner: connection.execute(MADE, (owner,)).fetchone()[0] for owner in owners}
    balances = dict.fromkeys(owners, 0)
    sums: dict[tuple[str, str], int] = {}
    for owner, kind, amount, balance in entries:
        balances[owner] += amount
        assert balance == balances[owner] >= 0, "each entry tells the sum of those up to it, which is never negative"
        sums[owner, kind] = sums.get((owner, kind), 0) + amount
    for owner in owners:
        granted, settled = sums.get((owner, "grant"), 0), -sums.get((owner, "settle"), 0)
        reserved = -sums.get((owner, "reserve"), 0) - sums.get((owner, "refund"), 0)
        assert settled == made[owner], "what was paid is what the pictures that were made cost"
        assert reserved == open_jobs[owner], "what is reserved is what the open jobs may cost"
        assert balances[owner] == granted - settled - reserved
    return balances
