"""Pruning: which blocks, attentions or MLPs a model can lose, at what cost, and how sure."""
