"""The texts of the spine: for each step a worked example, a blank, two hints and the solution.

A notebook shows `STEPS["spine.2"].markdown()` and has `blank` as its code cell. The solution is the
source of the reference that the check uses, so text and code cannot drift.
"""

from __future__ import annotations

import inspect
from textwrap import indent
from typing import NamedTuple

from contaccum_lite.course.exercises import EXERCISES


class Step(NamedTuple):
    """One step of `my_contaccum`."""

    name: str  # of the exercise
    title: str
    stars: int
    minutes: int
    example: str  # markdown: a worked example with numbers
    signature: str  # of the student's function
    task: str  # what stands above the blank as its docstring
    hints: tuple[str, str]
    given: str = ""  # the lines of a faded example; … marks what the student writes

    @property
    def function(self) -> str:
        """The name of the student's function."""
        return self.signature[: self.signature.index("(")]

    @property
    def blank(self) -> str:
        """The code cell: the function without its body, and its check."""
        body = self.given or "raise NotImplementedError"
        return (
            f'def {self.signature}:\n    """{self.task}"""\n{indent(body, "    ")}\n\n'
            f'cl.check("{self.name}", {self.function})'
        )

    @property
    def solution(self) -> str:
        """The reference solution under the student's name."""
        reference = EXERCISES[self.name].reference
        source = inspect.getsource(reference)
        return source.replace(f"def {reference.__name__}(", f"def {self.function}(", 1).rstrip()

    def markdown(self) -> str:
        """The text above the blank: heading and worked example."""
        heading = f"### {'★' * self.stars} {self.name} · {self.title} ({self.minutes} minutes)"
        return f"{heading}\n\n{self.example}"

    def folded(self) -> str:
        """The text below the blank: two hints and the solution, each folded."""
        first, second = self.hints
        folds = [("Hint 1", first), ("Hint 2", second)]
        folds.append(("Solution", f"```python\n{self.solution}\n```"))
        return "\n".join(
            f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"
            for summary, text in folds
        )


_ALL = (
    Step(
        "spine.1",
        "the loss of one row",
        1,
        5,
        "A query has the scores 2, 1 and 0 with three passages; its own passage is number 0. "
        "Softmax turns scores into shares: e² / (e² + e¹ + e⁰) = 7.39 / 11.11 = 0.665. The loss is "
        "minus the log of that share: −log 0.665 = 0.408. The same number without the division: "
        "log(11.11) − 2 = 0.408.",
        "row_loss(scores, positive)",
        "scores: (passages,). positive: the number of the query's own passage. One number.",
        (
            "The log of a quotient is a difference: the log of the sum of the exps, minus one "
            "score.",
            "`scores.logsumexp(0)` is the log of the sum of the exps.",
        ),
    ),
    Step(
        "spine.2",
        "the loss of a matrix",
        1,
        6,
        "Two queries, three passages, τ = 2. Products `[[4, 2, 0], [2, 2, 4]]` divided by τ are "
        "the scores `[[2, 1, 0], [1, 1, 2]]`. Row 0 has its positive at column 0: 0.408. Row 1 has "
        "it at column 1: log(e + e + e²) − 1 = 1.551. Column 2 is nobody's positive; it is a "
        "negative for both rows. The loss is the mean: (0.408 + 1.551) / 2 = 0.980.",
        "matrix_loss(queries, passages, temperature)",
        "queries: (n, d). passages: (n or more, d); query i's own is passage i. One number.",
        (
            "Compute all scores with one matrix product, then do to every row what `row_loss` does "
            "to one.",
            "`scores.diagonal()` holds every row's positive, and `logsumexp(1)` runs along rows.",
        ),
    ),
    Step(
        "spine.3",
        "blocks: gradient accumulation",
        1,
        5,
        "Four pairs, micro-batches of two. Micro-batch 0 is pairs 0 and 1: its matrix has 2 × 2 "
        "scores. Micro-batch 1 is pairs 2 and 3. If their losses are 0.5 and 0.3, the update's "
        "loss is 0.4. Of the 16 scores of the big batch, 8 were never computed: query 0 never met "
        "passage 2.",
        "accumulated_loss(queries, passages, local, temperature)",
        "queries, passages: (K · local, d). The mean of the K micro-batches' losses.",
        (
            "Cut both the queries and the passages into pieces of `local`, and call `matrix_loss` "
            "on each piece.",
            "`queries.split(local)` gives the pieces; `torch.stack(losses).mean()` their mean.",
        ),
    ),
    Step(
        "spine.4",
        "the chain: from a vector's gradient to the weights'",
        2,
        8,
        "The loss reads only vectors. Say a vector is v = w · x with w = 3 and x = 2, and someone "
        "tells you ∂loss/∂v = 5. The chain rule gives ∂loss/∂w = 5 · ∂v/∂w = 5 · 2 = 10. You need "
        "not know the loss: any other loss with the same ∂/∂v gives the same ∂/∂w, and the "
        "simplest is 5 · v. This is how GradCache trains a batch that does not fit: first all "
        "vectors without a graph, then the loss and the vectors' gradients, then micro-batch by "
        "micro-batch this chain.",
        "chain(tower, inputs, gradient)",
        "Add to the .grad of the tower's weights. inputs: of a micro-batch. gradient: ∂loss/∂v.",
        (
            "Encode the inputs. Which number has `gradient` as its derivative with respect to the "
            "vectors?",
            "The sum of all entries of vectors · gradient; then `.backward()`, which adds.",
        ),
    ),
    Step(
        "spine.5",
        "the ring: a memory bank",
        1,
        5,
        "A bank of size 3 holds a, b, c, the oldest first. The micro-batch d, e comes: a and b "
        "fall out, and the bank is c, d, e. A bank that is not full loses nothing: a, then d and "
        "e, is a, d, e. What is stored is numbers alone: a stored vector that still had its graph "
        "would keep its whole micro-batch in memory.",
        "enqueue(bank, vectors, size)",
        "bank: (n, d), the oldest first. vectors: (B, d), newer. The newest `size` of all.",
        (
            "Join the two, the new ones behind, and keep the end.",
            "`vectors.detach()` has no graph. Beware of `[-size:]` when size is 0.",
        ),
    ),
    Step(
        "spine.6",
        "the loss with two banks",
        2,
        8,
        "Two local pairs, three banked pairs: the matrix is 5 × 5. Rows: local queries 0 and 1, "
        "then banked queries 2, 3 and 4. Columns: local passages 0 and 1, then banked passages 2, "
        "3 and 4. Slot i of both banks holds one pair, so row 3's positive is column 3: the "
        "diagonal again. The mean is over all five rows. Banked vectors are constants: row 3 "
        "teaches no query tower, but its softmax over columns 0 and 1 pushes the local passages.",
        "dual_bank_loss(queries, passages, query_bank, passage_bank, temperature)",
        "queries, passages: (B, d), local. query_bank, passage_bank: (M, d). One number.",
        (
            "You have a function for the loss of any matrix. What are its rows and its columns?",
            "`torch.cat([queries, query_bank])` are the rows; the columns go the same way.",
        ),
    ),
    Step(
        "spine.7",
        "one weight update",
        3,
        12,
        "K = 2, and both banks hold the pairs a and b. Micro-batch c: its loss is over c, a, b; "
        "its gradient, divided by 2, goes into the towers; then c enters both banks. Micro-batch "
        "d: its loss is over d and what the banks hold now, its gradient is added, and d enters. "
        "Only then do the weights move, once. The half of the queries is written; the half of "
        "the passages is yours.",
        "update(query_tower, passage_tower, optimizer, micro_batches, query_bank, passage_bank,\n"
        "           memory_size, temperature, clip_norm)",
        "One update of ContAccum from K micro-batches; gives back both banks.",
        (
            "The loss is `dual_bank_loss` of q, p and both banks. `torch.autograd.grad` then gives "
            "its gradient with respect to q and p.",
            "The lines of the passages are those of the queries, with p for q.",
        ),
        given="""optimizer.zero_grad()
for queries, passages in micro_batches:
    q = query_tower(queries).detach().requires_grad_()
    p = passage_tower(passages).detach().requires_grad_()
    loss = ...                                                  # yours: spine.6
    grad_q, grad_p = torch.autograd.grad(loss, (q, p))
    chain(query_tower, queries, grad_q / len(micro_batches))
    ...                                                         # yours: spine.4
    query_bank = enqueue(query_bank, q, memory_size)
    passage_bank = ...                                          # yours: spine.5
weights = [*query_tower.parameters(), *passage_tower.parameters()]
torch.nn.utils.clip_grad_norm_(weights, clip_norm)
optimizer.step()
return query_bank, passage_bank""",
    ),
    Step(
        "spine.8",
        "MRR@10: how good is the ranking?",
        2,
        7,
        "Three queries find their own passage at rank 1, at rank 4 and at rank 25. The "
        "reciprocals are 1, 0.25 and, because 25 is beyond 10, 0. MRR@10 is their mean: "
        "1.25 / 3 = 0.417. A passage's rank is 1 plus the number of passages with a higher score.",
        "mrr(scores, positives, k)",
        "scores: (queries, passages). positives: (queries,), each query's own passage.",
        (
            "Take each query's score with its own passage, and count the scores above it.",
            "`scores.gather(1, positives[:, None])` has them; `torch.where` makes the zeros.",
        ),
    ),
    Step(
        "spine.9",
        "search",
        1,
        4,
        "A query's inner products with four passages are 0.2, 1.5, −0.3 and 0.9. The two best are "
        "row 1, then row 3.",
        "search(query, passages, k)",
        "query: (d,). passages: (N, d). The rows of the k best, the best first.",
        (
            "One product of a matrix and a vector gives all scores.",
            "`argsort(descending=True)` gives the rows by score; take the first k.",
        ),
    ),
)

#: The steps by name, in order.
STEPS: dict[str, Step] = {step.name: step for step in _ALL}
