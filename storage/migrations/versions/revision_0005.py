"""Revision 0005: money. What jobs are expected to cost, what owners handed in of late, and their credits."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("pixel_steps", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("expected_cost", sa.Float(), nullable=False, server_default="0"))
    op.create_table(
        "admissions",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("pixel_steps", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Integer(), nullable=False),
    )
    op.create_index("ix_admissions_owner", "admissions", ["owner_id", "created_at"])
    op.create_index("ix_admissions_age", "admissions", ["created_at"])
    op.create_table("credits", *_credit_columns(), *_credit_constraints())
    op.create_index("ix_credits_owner", "credits", ["owner_id", "id"])
    op.create_index("ix_credits_job", "credits", ["job_id"])


def _credit_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String()),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("amount", sa.Integer(), nullable=False),
        sa.Column("balance", sa.Integer(), nullable=False),
        sa.Column("note", sa.String()),
        sa.Column("reference", sa.String()),
        sa.Column("created_at", sa.Integer(), nullable=False),
    ]


def _credit_constraints() -> list[sa.Constraint]:
    return [
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"]),
        sa.UniqueConstraint("reference", name="uq_credits_reference"),
        sa.CheckConstraint("balance >= 0", name="ck_credits_balance"),
    ]
