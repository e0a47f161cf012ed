"""Time and memory of each objective and direction, beside the same losses of other libraries.

python -m benchmarks.field [rows]

Loss and gradients with respect to the vectors, on the same tensors: ours by hand, theirs by
autograd. sentence-transformers' losses are measured where it is installed, and open_clip's sigmoid
loss too (`pip install --no-deps open_clip_torch` is enough). Values are compared first. The whole matrix and its tiles stand beside each other in
memory. Times are medians with one thread; nothing is written. In "all", sentence-transformers counts
each positive twice and ours once (tests/test_objectives.py), which is the difference that is shown.
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
import sys
import time
from pathlib import Path

import torch

from contaccum_lite.core.directions import contrast
from contaccum_lite.core.loss import softmax_loss
from contaccum_lite.core.objectives import decoupled_loss, sigmoid_loss, sogclr_loss
from contaccum_lite.diagnostics.measure import tensor_memory
from contaccum_lite.evidence.records import markdown_table
from contaccum_lite.scale.tiled import tiled_info_nce

DIM, TEMPERATURE, REPEATS = 64, 8.0, 7
BIAS = -2.3


def ours(queries, passages) -> dict:
    """name -> a function that gives (loss, gradients)."""
    log_u = torch.zeros(len(queries))
    objectives = {
        "info_nce": softmax_loss,
        "decoupled": decoupled_loss,
        "sogclr": lambda scores: sogclr_loss(scores, log_u, 0.8)[:2],
        "sigmoid": lambda scores: sigmoid_loss(scores, 0.0, BIAS)[:2],
    }
    functions = {}
    for name, objective in objectives.items():
        functions[name] = functools.partial(
            contrast, queries, passages, temperature=TEMPERATURE, objectives=(objective, objective)
        )
    for directions in ("both", "all"):
        functions[f"info_nce, {directions}"] = functools.partial(
            contrast, queries, passages, temperature=TEMPERATURE, directions=directions
        )
    functions["info_nce, tiled"] = functools.partial(
        tiled_info_nce, queries, passages, temperature=TEMPERATURE
    )
    return functions


def theirs(queries, passages) -> dict:
    """our name -> (library, a function that gives the loss after its backward pass)."""
    functions = {}
    if importlib.util.find_spec("sentence_transformers"):
        from sentence_transformers.losses import MultipleNegativesRankingLoss

        for name, directions, mode in (
            ("info_nce", ("query_to_doc",), "joint"),
            ("info_nce, both", ("query_to_doc", "doc_to_query"), "per_direction"),
            (
                "info_nce, all",
                ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
                "joint",
            ),
        ):
            loss = MultipleNegativesRankingLoss(
                None,
                scale=1 / TEMPERATURE,
                similarity_fct=lambda a, b: a @ b.T,
                directions=directions,
                partition_mode=mode,
            )
            functions[name] = (
                "sentence-transformers",
                _backward(
                    lambda q, p, loss=loss: loss.compute_loss_from_embeddings([q, p], None),
                    queries,
                    passages,
                ),
            )
    open_clip = importlib.util.find_spec("open_clip")
    if open_clip:
        sigmoid = _losses_of(open_clip).SigLipLoss()
        scale, bias = (torch.tensor(x, requires_grad=True) for x in (1 / TEMPERATURE, BIAS))
        functions["sigmoid"] = (
            "open_clip",
            _backward(lambda q, p: sigmoid(q, p, scale, bias), queries, passages),
        )
    return functions


def _losses_of(open_clip):
    """Its module of losses alone, which needs torch and nothing else that it would install."""
    path = Path(open_clip.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _backward(function, queries, passages):
    def run():
        q, p = (v.clone().requires_grad_() for v in (queries, passages))
        loss = function(q, p)
        loss.backward()
        return loss.detach()

    return run


def seconds(function) -> float:
    """The median of some calls, after one to warm up."""
    function()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(arguments: list[str]) -> None:
    rows = int(arguments[0]) if arguments else 1024
    torch.manual_seed(0)
    torch.set_num_threads(1)
    queries, passages = torch.randn(rows, DIM), torch.randn(rows, DIM)
    others, table = theirs(queries, passages), []
    for name, function in ours(queries, passages).items():
        cells = [name, f"{1000 * seconds(function):.1f}", f"{tensor_memory(function) / 1e6:.1f}"]
        if name in others:
            library, other = others[name]
            gap = abs(float(function().loss) - float(other()))
            cells += [library, f"{1000 * seconds(other):.1f}", f"{tensor_memory(other) / 1e6:.1f}"]
            cells.append(f"{gap:.1e}")
        else:
            cells += ["–"] * 4
        table.append(cells)
    header = ["loss and gradients", "ms", "MB", "beside", "ms", "MB", "difference of the losses"]
    print(markdown_table(header, table))


if __name__ == "__main__":
    main(sys.argv[1:])
