"""Colours and dashes of the methods' lines, the same in every picture.

Okabe and Ito's colours, with purple in place of their sky blue, which is hard to see on white. Two
that share a dash differ in every common colour-blindness, and each colour contrasts with white and
with black (tests/test_access.py).
"""

#: method -> (colour, dash)
STYLES = {
    "dpr": ("#7A7A7A", "longdash"),
    "grad_accum": ("#0072B2", "dash"),
    "grad_cache": ("#8F5BD0", "dashdot"),
    "pre_batch": ("#D55E00", "dot"),
    "contaccum": ("#009E73", "solid"),
    "contaccum_no_past": ("#009E73", "dot"),
    "pre_batch_no_past": ("#D55E00", "dash"),
    "contaccum_no_accum": ("#009E73", "dashdot"),
    "momentum": ("#CC79A7", "dash"),
    "static_negatives": ("#0072B2", "longdash"),
    "stale_cache": ("#D55E00", "longdash"),
    "refreshed_cache": ("#0072B2", "solid"),
    "corrected_cache": ("#D55E00", "solid"),
    "oracle_cache": ("#CC79A7", "solid"),
    "contaccum_corrected": ("#009E73", "dash"),
    "pre_batch_corrected": ("#D55E00", "dashdot"),
    "grad_cache_bank": ("#8F5BD0", "dot"),
    "sogclr": ("#CC79A7", "dot"),
    "query_only": ("#CC79A7", "dashdot"),
}
