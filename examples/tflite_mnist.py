"""The guides' convolutional net on MNIST in every TensorFlow Lite form: size, accuracy and latency side by side.

python examples/tflite_mnist.py FOLDER [EPOCHS], which holds the 10,000 test images and labels as published (idx,
gzipped). Prints a table, and writes the folder mnist-fewbits with the smallest form and the report. Needs
fewbits[keras]; where plotly is installed too, mnist_forms.html shows the same as a picture.
"""

import gzip
import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras import layers

import fewbits as fb

TRAINED = 8000  # of the images; the others are scored
FORMS = {
    "original": "plain float",
    "fp16": "float16",
    "w8a8_dynamic": "dynamic range",
    "w8a8": "full integer",
    "w8a16": "16x8",
    "w8": "weights only, 8 bits",
    "w4": "weights only, 4 bits",
}


def trained(images, labels, epochs):
    """The net of the guides: a convolution of 12 filters, pooling, a dense layer of 10."""
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input((28, 28), name="image"),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(12, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10),
        ],
        name="mnist",
    )
    net.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    net.fit(images, labels, epochs=epochs, verbose=0)
    return net


def read(folder, name, skip):
    """The bytes of an idx file behind its header."""
    (path,) = Path(folder).glob(f"*{name}*ubyte.gz")
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=skip)


def compare_forms(folder, epochs=5):
    """Every form in words, with what was measured of it."""
    images = read(folder, "t10k*images", 16).reshape(-1, 28, 28).astype(np.float32) / 255
    labels = read(folder, "t10k*labels", 8).astype(np.int64)
    # One run tries every form, scores all on the same images and times them in turn; any loss is allowed here.
    result = fb.compress(
        trained(images[:TRAINED], labels[:TRAINED], epochs),
        images[:500],
        eval={"image": images[TRAINED:], "labels": labels[TRAINED:]},
        max_drop="100%",
        prefer="size",
        out="mnist-fewbits",
    )
    found = {one.recipe: one for one in result.report.candidates}
    rows = [(words, found[recipe]) for recipe, words in FORMS.items()]
    print(f"{'form':<22}{'bytes':>8}{'top-1 %':>9}{'ms':>9}")
    for words, one in rows:
        print(f"{words:<22}{one.size_bytes:>8}{one.metric:>9.2f}{one.latency_ms.p50:>9.4f}")
    print(f"smallest: {FORMS[result.report.shown.recipe]}, in {result.folder}")
    return rows


def draw(rows):
    """The same as a picture, in mnist_forms.html."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    picture = make_subplots(1, 3, shared_yaxes=True, subplot_titles=("bytes", "top-1 %", "ms for one image"))
    columns = (
        [one.size_bytes for _, one in rows],
        [one.metric for _, one in rows],
        [one.latency_ms.p50 for _, one in rows],
    )
    for place, numbers in enumerate(columns, 1):
        bars = go.Bar(x=numbers, y=[words for words, _ in rows], orientation="h", showlegend=False)
        picture.add_trace(bars, 1, place)
    picture.update_xaxes(range=[min(columns[1]) - 1, 100], col=2)  # differences are tenths of a percent
    picture.update_yaxes(autorange="reversed")
    picture.write_html("mnist_forms.html", include_plotlyjs="cdn")


if __name__ == "__main__":
    rows = compare_forms(sys.argv[1], *map(int, sys.argv[2:]))
    if importlib.util.find_spec("plotly"):
        draw(rows)
    else:
        print("no picture: plotly is not installed; run: pip install plotly")
