"""Data: sources, formats, the model's template, token ids with their loss mask, steps and batches."""

from sweeptune.data.collate import IGNORED, Batch, collate
from sweeptune.data.conversation import Conversation, Message
from sweeptune.data.ledger import Ledger, raise_on_problems
from sweeptune.data.plan import Step, eval_batches, hash_plan, hash_rows, micro_batches, plan_steps
from sweeptune.data.rendering import Rendering, check_rendering
from sweeptune.data.splits import Splits, load_splits
from sweeptune.data.tokenize import Encoded, Encoder, Row, Span

__all__ = [
    "IGNORED",
    "Batch",
    "Conversation",
    "Encoded",
    "Encoder",
    "Ledger",
    "Message",
    "Rendering",
    "Row",
    "Span",
    "Splits",
    "Step",
    "check_rendering",
    "collate",
    "eval_batches",
    "hash_plan",
    "hash_rows",
    "load_splits",
    "micro_batches",
    "plan_steps",
    "raise_on_problems",
]
