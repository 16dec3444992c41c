"""Documents as a random-effects model has them, its matrices written out."""

import numpy as np


def effective_documents_of_matrices(values, documents):
    """Effective documents by a second way: the matrices of the working model, written out."""
    names, _, sizes = np.unique(documents, return_inverse=True, return_counts=True)
    members = (documents[:, None] == names).astype(float)
    count, whole = len(names), len(values)
    within = values - (members @ (values @ members / sizes))
    residual = values @ members - sizes * values.mean()
    inside = within @ within / (whole - count) if whole > count else 1.0
    between = (residual**2 / sizes).sum() / (count - 1)
    typical = (whole - (sizes**2).sum() / whole) / (count - 1)
    component = max(0.0, (between - inside) / typical) if whole > count else 0.0
    correlation = component / (component + inside)
    same = members @ members.T
    of_values = correlation * same + (1 - correlation) * np.eye(whole)
    centre = np.eye(whole) - np.full((whole, whole), 1 / whole)
    of_residuals = members.T @ centre @ of_values @ centre @ members
    return np.trace(of_residuals) ** 2 / np.trace(of_residuals @ of_residuals) + 1
