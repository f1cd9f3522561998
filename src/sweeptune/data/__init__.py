"""Data: sources, formats, the model's template, token ids with their loss mask, packs, steps and batches."""

from sweeptune.data.collate import IGNORED, Batch, collate, collate_packs
from sweeptune.data.conversation import Conversation, Message
from sweeptune.data.ledger import Ledger, raise_on_problems
from sweeptune.data.pack import Pack, Packs, Piece
from sweeptune.data.plan import (
    Step,
    eval_batches,
    hash_plan,
    hash_rows,
    largest_batches,
    micro_batches,
    plan_steps,
    samples,
)
from sweeptune.data.rendering import Rendering, check_rendering
from sweeptune.data.splits import Splits, load_everything, load_splits
from sweeptune.data.store import StoreWriter, TokenStore, lengths_of, loss_counts_of, open_parts
from sweeptune.data.template import apply_template, load_run_tokenizer, stop_ids
from sweeptune.data.tokenize import Encoded, Encoder, Row, Span

__all__ = [
    "IGNORED",
    "Batch",
    "Conversation",
    "Encoded",
    "Encoder",
    "Ledger",
    "Message",
    "Pack",
    "Packs",
    "Piece",
    "Rendering",
    "Row",
    "Span",
    "Splits",
    "Step",
    "StoreWriter",
    "TokenStore",
    "apply_template",
    "check_rendering",
    "collate",
    "collate_packs",
    "eval_batches",
    "hash_plan",
    "hash_rows",
    "largest_batches",
    "lengths_of",
    "load_everything",
    "load_run_tokenizer",
    "load_splits",
    "loss_counts_of",
    "micro_batches",
    "open_parts",
    "plan_steps",
    "raise_on_problems",
    "samples",
    "stop_ids",
]
