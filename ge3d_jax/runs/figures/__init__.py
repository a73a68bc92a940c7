"""The paper's tables and figures, each in a file of its own; `figures.FIGURES` names them."""
