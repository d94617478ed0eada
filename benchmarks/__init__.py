"""Side-by-side measurements: each ratio comes from one interleaved run on one machine."""
