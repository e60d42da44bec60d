"""The Report record and its forms: JSON, HTML, plots."""
