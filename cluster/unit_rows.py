"""The rows of a unit, from what its flows ended with."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.protocol import GenerateJob
from generation.errors import Reject
from generation.flows import FlowResult
from generation.instances.plan import FlowPlan, PlanRecord
from generation.rows import Row, row_id

_ROW_BYTES = 256
"""What a row takes besides its texts."""


@dataclass(frozen=True, slots=True)
class FullUnit:
    """A unit all of whose flows have ended.

    Attributes:
        unit: Unit id.
        lease_id: The lease that it came with.
        rows: In the order of its flows.
        by_stage: Of each flow, stage to counts.
        row_bytes: About what its rows take.
    """

    unit: str
    lease_id: str
    rows: list[Row]
    by_stage: list[dict[str, dict[str, int]]]
    row_bytes: int


def full_unit(
    job: GenerateJob, lease_id: str, record: PlanRecord, flows: Sequence[FlowPlan], results: Sequence[FlowResult]
) -> FullUnit:
    """A unit from its flows and their results, in the same order. A flow that failed becomes a rejection."""
    rows = [_row(job, record, plan, result) for plan, result in zip(flows, results, strict=True)]
    row_bytes = sum(len(row.input) + len(row.rationale) + len(row.raw) + _ROW_BYTES for row in rows)
    return FullUnit(flows[0].unit, lease_id, rows, [result.by_stage for result in results], row_bytes)


def _row(job: GenerateJob, record: PlanRecord, plan: FlowPlan, result: FlowResult) -> Row:
    row = result.value if result.error is None else _rejection(job, record, plan, result.error)
    return row._replace(
        requests=result.requests,
        prompt_tokens=result.prompt_tokens,
        cached_tokens=result.cached_tokens,
        output_tokens=result.output_tokens,
    )


def _rejection(job: GenerateJob, record: PlanRecord, plan: FlowPlan, error: Exception) -> Row:
    if isinstance(error, Reject):
        stage, reason, raw = error.stage, error.reason, ""
    else:
        stage, reason, raw = "flow", type(error).__name__, str(error)
    return Row(
        row_id=row_id(job.run_id, plan.unit, plan.index),
        unit=plan.unit,
        index=plan.index,
        task=record.task,
        status="rejection",
        stage=stage,
        reason=reason,
        bundle=record.bundle.bundle_id,
        principles=record.bundle.principles,
        cell=plan.cell.cell_id,
        model=job.context.model,
        round=record.round,
        raw=raw,
    )
