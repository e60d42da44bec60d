"""The error of dot products in fp32, fp16 and bf16, as they grow longer."""

import plotly.graph_objects as go

from fewbits.numerics.studies import dot_product_errors

records = dot_product_errors()
print(f"{'format':8}{'length':>8}{'inputs rounded':>16}{'sum rounded too':>17}")
for r in records:
    print(f"{r.qtype:8}{r.length:8}{r.rounded:16.2e}{r.accumulated:17.2e}")

figure = go.Figure()
for qtype in ("fp32", "fp16", "bf16"):
    chosen = [r for r in records if r.qtype == qtype]
    lengths = [r.length for r in chosen]
    figure.add_scatter(x=lengths, y=[r.rounded for r in chosen], name=f"{qtype} inputs, fp32 sum")
    figure.add_scatter(
        x=lengths, y=[r.accumulated for r in chosen], name=f"{qtype} throughout", line_dash="dot"
    )
figure.update_xaxes(type="log", title="terms").update_yaxes(type="log", title="relative error (RMS)")
figure.update_layout(title="Dot products: the sum needs the bits more than the inputs do")
figure.write_html("numerics_dot_product.html", include_plotlyjs="cdn")
