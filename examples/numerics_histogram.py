"""A weight tensor's histogram before and after k-bit quantization."""

import torch
from plotly.subplots import make_subplots

from fewbits.numerics.studies import weight_histogram

weights = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0)) * 0.02
widths = (8, 4, 3, 2)
figure = make_subplots(
    rows=len(widths), cols=1, shared_xaxes=True, subplot_titles=[f"{k} bits" for k in widths]
)
for place, bits in enumerate(widths, start=1):
    h = weight_histogram(weights, bits)
    print(f"{bits} bits: {h.distinct} values left, SQNR {h.sqnr_db:.1f} dB")
    centers = ((h.edges[1:] + h.edges[:-1]) / 2).tolist()
    for name, counts, color in (("before", h.before, "lightgray"), ("after", h.after, "steelblue")):
        figure.add_bar(
            x=centers,
            y=counts.tolist(),
            name=name,
            marker_color=color,
            showlegend=place == 1,
            row=place,
            col=1,
        )
figure.update_yaxes(type="log").update_layout(title="Weights before and after", barmode="overlay", bargap=0)
figure.write_html("numerics_histogram.html", include_plotlyjs="cdn")
