"""flan-t5-small in 8 and 4 bits: bytes, and the tokens that it generates.

The weights are random; with those of the hub, AutoModelForSeq2SeqLM.from_pretrained("google/flan-t5-small").
"""

import time

import torch
from transformers import T5Config, T5ForConditionalGeneration

import fewbits as fb

config = T5Config(
    d_model=512,
    d_ff=1024,
    num_layers=8,
    num_heads=6,
    feed_forward_proj="gated-gelu",
    decoder_start_token_id=0,
)
torch.manual_seed(0)
model = T5ForConditionalGeneration(config).eval()
question = torch.randint(2, 32000, (1, 16))


def answer(name, model):
    """Generate a few tokens, and say how long it took."""
    start = time.perf_counter()
    tokens = model.generate(question, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    seconds = time.perf_counter() - start
    print(f"{name}: {fb.look(model).nbytes / 1e6:.0f} MB, {seconds:.2f} s, {tokens[0, 1:].tolist()}")


answer("fp32", model)
for recipe in ("w8a8_dynamic", "w4_g128"):
    small = fb.quantize(model, recipe)
    answer(recipe, small)
fb.save(small, "flan-t5-small-4bit.safetensors")
with torch.device("meta"):  # values come from the file: none need be made first
    skeleton = T5ForConditionalGeneration(config)
again = fb.load("flan-t5-small-4bit.safetensors", arch=skeleton).eval()
answer("loaded again", again)
