"""How much better each further bit makes a weight tensor, for each kind of format."""

import plotly.graph_objects as go
import torch

from fewbits.numerics.studies import sqnr_against_bits

weights = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0)) * 0.02
points = sqnr_against_bits(weights)
kinds = list(dict.fromkeys(p.kind for p in points))
figure = go.Figure()
for kind in kinds:
    chosen = [p for p in points if p.kind == kind]
    print(f"{kind:18}" + "".join(f"{p.bits:4} bits {p.sqnr_db:5.1f} dB" for p in chosen))
    figure.add_scatter(
        x=[p.bits for p in chosen], y=[p.sqnr_db for p in chosen], name=kind, mode="lines+markers"
    )
figure.update_xaxes(title="bits").update_yaxes(title="SQNR (dB)")
figure.update_layout(title="Signal to quantization noise, one scale for the tensor")
figure.write_html("numerics_sqnr.html", include_plotlyjs="cdn")
