"""The network: `esm2` runs packed batches; `layout` places views in them, `pooling` reduces."""
