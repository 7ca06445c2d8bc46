"""One page that answers: results in, a self-contained HTML file out."""
