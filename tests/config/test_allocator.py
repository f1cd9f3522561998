"""What torch's allocator is told: expandable segments, and nothing against what the user has set."""

from __future__ import annotations

import pytest

from sweeptune.config.allocator import expand_segments, expands_segments

OURS = "expandable_segments:True"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": OURS}),
        ({"PYTORCH_ALLOC_CONF": ""}, {"PYTORCH_ALLOC_CONF": OURS}),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512"},
            {"PYTORCH_CUDA_ALLOC_CONF": f"max_split_size_mb:512,{OURS}"},
        ),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "a:1", "PYTORCH_ALLOC_CONF": "b:2,"},
            {"PYTORCH_CUDA_ALLOC_CONF": f"a:1,{OURS}", "PYTORCH_ALLOC_CONF": f"b:2,{OURS}"},
        ),
    ],
)
def test_the_option_is_added_to_what_is_set(given: dict[str, str], wanted: dict[str, str]) -> None:
    expand_segments(given)
    assert given == wanted
    assert expands_segments(given)
    expand_segments(given)
    assert given == wanted


@pytest.mark.parametrize(
    ("given", "expands"),
    [
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}, False),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments: True, garbage_collection_threshold:0.8"}, True),
        ({"PYTORCH_ALLOC_CONF": "a:1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}, False),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}, False),
    ],
)
def test_a_choice_of_the_user_is_left_alone(given: dict[str, str], expands: bool) -> None:
    before = dict(given)
    expand_segments(given)
    assert given == before
    assert expands_segments(given) is expands
