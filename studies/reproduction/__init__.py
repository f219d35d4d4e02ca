"""The paper's findings looked at again with a small model: the cells of two sweeps, and the page written from them."""
