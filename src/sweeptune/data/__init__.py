"""Data: sources, formats, the model's template, token ids with their loss mask, steps and batches."""

from sweeptune.data.collate import IGNORED, Batch, collate
from sweeptune.data.conversation import Conversation, Message
from sweeptune.data.plan import Step, eval_batches, hash_plan, hash_rows, micro_batches, plan_steps
from sweeptune.data.splits import Splits, load_splits
from sweeptune.data.template import apply_template, load_run_tokenizer, stop_ids
from sweeptune.data.tokenize import Encoded, Encoder, Row, Span

__all__ = [
    "IGNORED",
    "Batch",
    "Conversation",
    "Encoded",
    "Encoder",
    "Message",
    "Row",
    "Span",
    "Splits",
    "Step",
    "apply_template",
    "collate",
    "eval_batches",
    "hash_plan",
    "hash_rows",
    "load_run_tokenizer",
    "load_splits",
    "micro_batches",
    "plan_steps",
    "stop_ids",
]
