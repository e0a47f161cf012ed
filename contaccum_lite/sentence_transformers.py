"""`ContAccumLoss`, under the name that it had before the package had packages."""

from contaccum_lite.integrations.sentence_transformers import BankCallback, ContAccumLoss

__all__ = ["BankCallback", "ContAccumLoss"]
