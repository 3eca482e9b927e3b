"""Training on curated rows: packing, the DeepSpeed loop, checkpoints and export. Imports no ray."""
