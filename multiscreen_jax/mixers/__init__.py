"""Token mixers, one per file: x -> y, causal, with a cache that goes in and comes out."""
