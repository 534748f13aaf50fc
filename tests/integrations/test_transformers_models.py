"""Small models of every kind on Mainboard's attention, against the same models on eager."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from mainboard.errors import UnsupportedConfigurationError
from mainboard.integrations.transformers import register

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.4,  # so that attention is far from uniform
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODER: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    register()


def build(cls: Any, config: Any) -> Any:
    """A model with random weights, ready to infer."""
    torch.manual_seed(0)
    return cls(config).eval()


def batch(side: str, tokens: int = 13) -> tuple[Tensor, Tensor]:
    """Token ids and their mask: a full row, a half, and a single token."""
    torch.manual_seed(1)
    ids = torch.randint(3, 64, (3, tokens))
    mask = torch.ones_like(ids)
    for row, real in enumerate((tokens, tokens // 2, 1)):
        mask[row, real:] = 0
    return ids, mask if side == "right" else mask.flip(1)


def both(model: Any, **inputs: Any) -> tuple[Any, Any]:
    """The model's output on eager and on Mainboard."""
    outputs = []
    for name in ("eager", "mainboard"):
        model.set_attn_implementation(name)
        with torch.inference_mode():
            outputs.append(model(**inputs))
    return outputs[0], outputs[1]


def agree(got: Tensor, want: Tensor) -> None:
    """Equal to what two orders of float32 sums allow."""
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


ENCODERS = {
    "bert": lambda: build(
        transformers.BertModel, transformers.BertConfig(**SIZES, max_position_embeddings=64)
    ),
    "distilbert": lambda: build(
        transformers.DistilBertModel,
        transformers.DistilBertConfig(vocab_size=64, dim=32, hidden_dim=48, n_layers=2, n_heads=4),
    ),
    "modernbert, local and global layers": lambda: build(
        transformers.ModernBertModel,
        transformers.ModernBertConfig(
            **SIZES, local_attention=6, layer_types=["full_attention", "sliding_attention"]
        ),
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_encoders_match_eager_on_real_tokens(name: str, side: str) -> None:
    """Padding on either side changes nothing for the tokens beside it."""
    model = ENCODERS[name]()
    ids, mask = batch(side)
    want, got = both(model, input_ids=ids, attention_mask=mask)
    agree(got.last_hidden_state[mask.bool()], want.last_hidden_state[mask.bool()])


DECODERS = {
    "llama, grouped queries": lambda: build(
        transformers.LlamaForCausalLM, transformers.LlamaConfig(**DECODER)
    ),
    "mistral, sliding window": lambda: build(
        transformers.MistralForCausalLM, transformers.MistralConfig(**DECODER, sliding_window=5)
    ),
    "gemma2, soft capping": lambda: build(
        transformers.Gemma2ForCausalLM,
        transformers.Gemma2Config(
            **DECODER, sliding_window=5, attn_logit_softcapping=0.4, query_pre_attn_scalar=4
        ),
    ),
    "gpt-oss, sinks": lambda: build(
        transformers.GptOssForCausalLM,
        transformers.GptOssConfig(
            **DECODER, sliding_window=5, num_local_experts=2, num_experts_per_tok=1
        ),
    ),
}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_decoders_match_eager_in_one_pass(name: str, side: str) -> None:
    """Prefill, with padding on either side."""
    model = DECODERS[name]()
    if "sinks" in name:
        nn.init.normal_(model.model.layers[0].self_attn.sinks, std=2.0)
    ids, mask = batch(side)
    want, got = both(model, input_ids=ids, attention_mask=mask)
    agree(got.logits[mask.bool()], want.logits[mask.bool()])


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("cache", [None, "static"])
def test_generation_matches_eager_step_by_step(name: str, cache: str | None) -> None:
    """Prefill and decode through a growing and a fixed cache, windows passed by."""
    model = DECODERS[name]()
    ids, mask = batch("left")
    options = transformers.GenerationConfig(
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        cache_implementation=cache,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
        eos_token_id=2,
    )
    results = []
    for implementation in ("eager", "mainboard"):
        model.set_attn_implementation(implementation)
        results.append(model.generate(ids, attention_mask=mask, generation_config=options))
    want, got = results
    assert torch.equal(got.sequences, want.sequences)
    for ours, theirs in zip(got.logits, want.logits, strict=True):
        agree(ours, theirs)


def test_generation_from_a_right_padded_batch_matches_eager() -> None:
    """Keys then have holes, and the first token is read at a padding position."""
    model = DECODERS["llama, grouped queries"]()
    ids, mask = batch("right")
    want_ids = got_ids = ids
    caches = {name: transformers.DynamicCache() for name in ("eager", "mainboard")}
    # Transformers 5.24 renamed the argument.
    taken = inspect.signature(model.forward).parameters
    argument = "cache" if "cache" in taken else "past_key_values"
    for _ in range(4):
        logits = {}
        for name, cache in caches.items():
            model.set_attn_implementation(name)
            with torch.inference_mode():
                output = model(got_ids, attention_mask=mask, **{argument: cache})
            logits[name] = output.logits[:, -1]
        agree(logits["mainboard"], logits["eager"])
        got_ids = logits["mainboard"].argmax(-1, keepdim=True)
        want_ids = logits["eager"].argmax(-1, keepdim=True)
        assert torch.equal(got_ids, want_ids)
        mask = torch.cat([mask, torch.ones(3, 1, dtype=mask.dtype)], dim=1)


def test_packed_sequences_match_the_sequences_apart() -> None:
    """One row whose positions restart is as many sequences."""
    model = DECODERS["mistral, sliding window"]()
    ids, _ = batch("right", tokens=16)
    lengths = (3, 9, 4)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    want, got = both(model, input_ids=ids[:1], position_ids=positions, use_cache=False)
    agree(got.logits, want.logits)
    starts = torch.tensor([0, 3, 12, 16], dtype=torch.int32)
    with torch.inference_mode():
        again = model(
            input_ids=ids[:1],
            position_ids=positions,
            use_cache=False,
            cu_seq_lens_q=starts,
            cu_seq_lens_k=starts,
        )
        alone = model(input_ids=ids[:1, 3:12], use_cache=False)
    assert torch.equal(again.logits, got.logits)
    agree(got.logits[:, 3:12], alone.logits)


def test_cross_attention_answers_every_query() -> None:
    """A decoder as long as its padded encoder input loses none of its own tokens."""
    config = transformers.BartConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        forced_eos_token_id=2,
        decoder_start_token_id=2,
    )
    model = build(transformers.BartModel, config)
    ids, mask = batch("right")
    want, got = both(model, input_ids=ids, attention_mask=mask, decoder_input_ids=ids)
    agree(got.last_hidden_state, want.last_hidden_state)


def test_a_vision_model_runs_without_a_mask() -> None:
    """No mask is made for images; the layer says that it is not causal."""
    sizes = {key: value for key, value in SIZES.items() if not key.endswith(("_id", "vocab_size"))}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=4)
    model = build(transformers.ViTModel, config)
    want, got = both(model, pixel_values=torch.randn(2, 3, 16, 16))
    agree(got.last_hidden_state, want.last_hidden_state)


def test_autocast_runs_attention_in_its_dtype() -> None:
    """As torch's own attention does."""
    model = DECODERS["llama, grouped queries"]()
    ids, mask = batch("left")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want, got = both(model, input_ids=ids, attention_mask=mask)
    assert got.logits.dtype == torch.bfloat16
    likeness = nn.functional.cosine_similarity(got.logits.float(), want.logits.float(), dim=-1)
    assert likeness[mask.bool()].min() > 0.999


def test_a_compiled_model_matches() -> None:
    """torch.compile breaks its graph at attention and goes on."""
    model = ENCODERS["bert"]()
    ids, mask = batch("right")
    want, _ = both(model, input_ids=ids, attention_mask=mask)
    compiled = torch.compile(model, backend="eager")
    with torch.inference_mode():
        got = compiled(input_ids=ids, attention_mask=mask)
    agree(got.last_hidden_state[mask.bool()], want.last_hidden_state[mask.bool()])


def test_custom_masks_and_attention_weights_are_refused() -> None:
    """What eager could do and the operator cannot is said, not dropped."""
    model = ENCODERS["bert"]()
    model.set_attn_implementation("mainboard")
    ids, mask = batch("right")
    four = torch.ones(3, 1, 13, 13, dtype=torch.bool)
    with torch.inference_mode():
        with pytest.raises(UnsupportedConfigurationError, match="4-D tensor"):
            model(input_ids=ids, attention_mask=four)
        with pytest.raises(UnsupportedConfigurationError, match="never formed"):
            model(input_ids=ids, attention_mask=mask, output_attentions=True)


def test_training_is_refused() -> None:
    """There is no dropout and no backward, and each says so."""
    model = ENCODERS["bert"]()
    model.set_attn_implementation("mainboard")
    ids, mask = batch("right")
    with pytest.raises(UnsupportedConfigurationError, match=r"dropout is 0\.1"):
        model.train()(input_ids=ids, attention_mask=mask)
    with pytest.raises(RuntimeError, match="inference_mode"):
        model.eval()(input_ids=ids, attention_mask=mask)


def test_a_name_of_ones_own() -> None:
    """The name is the caller's to choose."""
    register("mainboard-again")
    model = ENCODERS["bert"]()
    model.set_attn_implementation("mainboard-again")
    ids, mask = batch("right")
    with torch.inference_mode():
        assert model(input_ids=ids, attention_mask=mask).last_hidden_state.shape == (3, 13, 32)
