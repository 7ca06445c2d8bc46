"""Figures: tables in, plotly figures out; used by the report and by notebooks."""
