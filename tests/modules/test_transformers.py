"""Models of transformers: tiny ones of several families, as they are used."""

import pytest
import torch
import transformers

import fewbits as fb
from fewbits.modules.files import coded_weights
from tests.modules.layers import ids, sqnr

T5 = transformers.T5Config(
    d_model=64,
    d_kv=16,
    d_ff=128,
    num_layers=1,
    num_heads=4,
    vocab_size=96,
    feed_forward_proj="gated-gelu",
    decoder_start_token_id=0,
)
SMALL = {"num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 96}
MODELS = {
    "t5": lambda: transformers.T5ForConditionalGeneration(T5),
    "bert": lambda: transformers.BertModel(
        transformers.BertConfig(hidden_size=64, intermediate_size=128, **SMALL)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=64, n_layer=1, n_head=4, vocab_size=96, bos_token_id=1, eos_token_id=1)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(hidden_size=64, intermediate_size=128, num_key_value_heads=2, **SMALL)
    ),
}
GENERATES = ("t5", "gpt2", "llama")


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("t5", "w8"),
        ("t5", "w4_g32"),
        ("t5", "bf16"),
        ("bert", "w8a8_dynamic"),
        ("gpt2", "w8"),
        ("llama", "bf16"),
    ],
)
def test_outputs_and_files(name, recipe, tmp_path):
    model = MODELS[name]().eval()
    small = fb.quantize(model, recipe)
    inputs = {"input_ids": ids(96, 2, 7)} | ({"decoder_input_ids": ids(96, 2, 5)} if name == "t5" else {})
    expected, got = model(**inputs)[0], small(**inputs)[0]
    assert got.shape == expected.shape and got.dtype == expected.dtype
    assert sqnr(expected, got) > (10 if recipe == "w4_g32" else 25)
    fb.save(small, tmp_path / "small.safetensors")
    again = fb.load(tmp_path / "small.safetensors", MODELS[name]).eval()
    assert torch.equal(again(**inputs)[0], got)
    if name in GENERATES:
        tokens = small.generate(ids(90, 1, 6) + 2, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert torch.equal(
            tokens,
            again.generate(ids(90, 1, 6) + 2, max_new_tokens=4, min_new_tokens=4, do_sample=False),
        )
        assert tokens.shape == (1, 5 if name == "t5" else 10)


@pytest.mark.parametrize("name", GENERATES[:2])
def test_tied_tables_are_one(name):
    small = fb.quantize(MODELS[name]().eval(), "w8")
    shared = small.get_input_embeddings()._modules["weight"]
    assert shared is small.lm_head._modules["weight"]
    assert sum(weight is shared for weight in coded_weights(small)) == 1
