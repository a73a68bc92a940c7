"""The paper's tables and figures, one per file; `figures.FIGURES` lists them."""
