"""The paper's claims (arXiv 2505.23735) at the scale of a laptop: `python -m bench.quality`."""
