"""The gradient of a step is one sum, however the rows are dealt; and the loss is one number, however it is batched."""

from __future__ import annotations

import math

import pytest
import torch

from sweeptune.data import collate
from sweeptune.training.evaluate import evaluate, summarize
from sweeptune.training.loss import token_nll
from sweeptune.training.optimizer import learning_rate
from sweeptune.training.session import open_session
from tests.training.helpers import gradients


@pytest.mark.parametrize("size", [1, 2, 4, 64])
def test_gradient_is_the_mean_over_loss_tokens_for_every_micro_batch(settings, tmp_path, size):
    session, found = gradients(settings("method=full", f"hardware.micro_batch={size}"), tmp_path)
    rows = [session.splits.train[i] for i in session.steps[0].rows]
    assert len(rows) > 4 and len({row.length for row in rows}) > 3, "the step must mix lengths to prove anything"
    # The definition, one row at a time, with a loss of its own: sum over loss tokens, divided once.
    session.model.zero_grad()
    total = torch.zeros(())
    for row in rows:
        ids = torch.tensor([row.input_ids])
        logits = session.model(input_ids=ids).logits[0, :-1].double()
        nll = -logits.log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
        total = total + nll[torch.tensor(row.loss_mask[1:])].sum()
    (total / sum(row.loss_tokens for row in rows)).backward()
    for name, parameter in session.model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-5)


def test_two_steps_of_micro_batches_1_2_4_move_the_weights_alike(settings, tmp_path):
    from safetensors.torch import load_file

    from sweeptune.training import run
    from sweeptune.training.checkpoint import find_checkpoints

    ends = []
    for size in (1, 2, 4):
        folder = tmp_path / str(size)
        overrides = (
            "method=full",
            f"hardware.micro_batch={size}",
            "train.max_steps=2",
            "optim.lr=1e-3",
            "optim.eps=1e-3",
        )
        assert run(settings(*overrides), folder)["status"] == "completed"
        ends.append(load_file(find_checkpoints(folder)[-1] / "trainable.safetensors"))
    for other in ends[1:]:
        for name, tensor in ends[0].items():
            torch.testing.assert_close(tensor, other[name], rtol=0, atol=1e-5)


def test_eval_loss_is_the_same_for_every_batch_size(settings, tmp_path):
    session = open_session(settings("method=full"), tmp_path)
    rows = session.splits.eval
    losses = [
        summarize(
            evaluate(session.model, rows, batch_size=n, device=session.device, autocast=session.autocast, pad_id=256)
        )["loss"]
        for n in (1, 3, 8)
    ]
    nll, tokens = 0.0, 0
    for row in rows:  # the definition, without the project's loss
        ids = torch.tensor([row.input_ids])
        logp = session.model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        mask = torch.tensor(row.loss_mask[1:])
        nll -= logp.gather(1, ids[0, 1:, None]).squeeze(1)[mask].sum().item()
        tokens += int(mask.sum())
    assert losses == pytest.approx([nll / tokens] * 3, abs=1e-5)


def test_padding_never_counts(settings, tmp_path):
    session = open_session(settings("method=full"), tmp_path)
    short, long = sorted(session.splits.train, key=lambda row: row.length)[:: len(session.splits.train) - 1]
    with torch.no_grad():
        alone = token_nll(session.model, collate([short], 256, session.device)).sum()
        beside = token_nll(session.model, collate([short, long], 7, session.device))[0].sum()
    assert beside.item() == pytest.approx(alone.item(), abs=1e-4)


def test_summary_is_weighted_by_tokens_and_counts_bytes():
    found = summarize(
        [
            {"id": "a", "nll": 3.0, "loss_tokens": 1, "bytes": 4},
            {"id": "b", "nll": 3.0, "loss_tokens": 5, "bytes": 6},
        ]
    )
    assert found["loss"] == 1.0  # not (3 + 0.6) / 2
    assert found["perplexity"] == pytest.approx(math.e)
    assert found["bits_per_byte"] == pytest.approx(6 / math.log(2) / 10)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.5, 1, 1, 1]), ("linear", [0.5, 1, 1, 0.5]), ("cosine", [0.5, 1, 1, 0.5])],
)
def test_schedules_start_and_end_where_they_should(settings, schedule, expected):
    optim = settings("optim.lr=1.0", f"optim.schedule={schedule}", "optim.warmup=0.2").optim
    assert [learning_rate(optim, step, 10) for step in (0, 1, 2, 6)] == pytest.approx(expected)
