"""Data and arithmetic: schemes, recipes, plans. Knows no framework."""
