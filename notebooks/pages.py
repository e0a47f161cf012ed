"""The course for where no kernel runs: `make pages`, or

    python notebooks/pages.py            every notebook and document as HTML, a first page, and lab.html with runs recorded on python-docs
    python notebooks/pages.py toy        the same, recorded on toy pairs in a few seconds

All goes to build/pages. lab.html is one file that needs neither kernel nor network: plotly and the recorded numbers are packed into it.
Of a data set it holds qualified names and numbers, and no text.
"""

import base64
import gzip
import html
import json
import math
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE.parent / "build" / "pages"
METHODS = ("dpr", "grad_accum", "pre_batch", "contaccum")
KINDS = ("softmax weight", "gradient weight")
ENDS = {"softmax weight": ["≤ 0.0001", "1"], "gradient weight": ["pulls together", "pushes apart"]}
MARKS = ("circle", "square", "x", "diamond")
UPDATES, N_MEMORY = 150, 128  # of the recorded runs: a matrix in which single entries are seen
LARGEST = 5_000_000  # bytes


# --- the recorded lab --------------------------------------------------------------------------------------------------


def moments(updates: int) -> list[int]:
    """After which updates a frame is kept: closely at first, then about every tenth of the run."""
    return sorted(
        {1, 2, 3, 5, 8, 12, *(round(updates * n / 10) for n in range(1, 11))}
        & set(range(1, updates + 1))
    )


def record(pairs, updates: int = UPDATES, **fields) -> dict:
    """Runs of all methods as the page shows them: frames with matrices, ages and sentences, and the curves."""
    import contaccum_lite as cl
    from contaccum_lite.lab.style import STYLES
    from contaccum_lite.lab.history import NAMES

    methods = []
    for method, mark in zip(METHODS, MARKS):
        own = {
            name: value for name, value in fields.items() if name not in cl.PRESETS[method]["fixed"]
        }
        if method == "dpr":
            own["local_batch"] = cl.Settings(**fields).total_batch
        lab, frames = (
            cl.Lab(pairs, method=method, updates=updates, every=max(1, updates // 5), **own),
            [],
        )
        for update in moments(updates):
            lab.run(
                update - lab.training.step_count if update < updates else None
            )  # with its last evaluation
            frames.append(frame(lab))
        history, color_dash = lab.training.history, STYLES[method]
        at = [u.step for u in history]
        curves = dict(
            loss=[at, [round(u.loss, 4) for u in history]],
            ratio=[at, [round(u.grad_norm_ratio, 4) for u in history]],
            mrr=[
                [u for u, _ in lab.track.mrr],
                [round(100 * v, 2) for _, v in lab.track.mrr],
            ],
        )
        methods.append(
            dict(
                name=NAMES[method],
                frames=frames,
                curves=curves,
                colour=color_dash[0],
                dash=color_dash[1],
                mark=mark,
            )
        )
        settings = lab.training.settings
        lab.close()
    seen = {number for m in methods for f in m["frames"] for number in f["rows"] + f["columns"]}
    about = (
        f"{pairs.name}: {len(pairs.train):,} pairs to train on. {updates} updates of {settings.total_batch} pairs; N_local {settings.local_batch}, K {settings.accumulation_steps}, N_memory "
        f"{settings.memory_size} where there is a bank; seed {settings.seed}. The same run, live: {settings.share()}"
    )
    return dict(
        about=about,
        updates=updates,
        kinds=KINDS,
        ends=ENDS,
        colours={kind: scale(kind) for kind in KINDS},
        banks=("query", "passage"),
        methods=methods,
        names={number: name_of(pairs.train[number]) for number in sorted(seen)},
    )


def name_of(pair) -> str:
    """A passage's name, without what a terminal would take for a command."""
    from contaccum_lite.utils.text import short

    return short(pair.title or pair.passage_id, 80)


def frame(lab) -> dict:
    """What a lab shows now: matrices and banks as bytes of colour, ages by slot, ids, and every sentence."""
    view, micro, cells = lab.views, lab.micro, {}
    for kind in KINDS:
        view.matrix.kind = kind
        cells[kind] = base64.b64encode(view.matrix.cells().tobytes()).decode()
    banks = {
        name: dict(
            cells=base64.b64encode(view.banks.cells(name).tobytes()).decode(),
            across=view.banks.across(bank["size"]),
            ages=bank["ages"],
        )
        for name, bank in view.banks.data().items()
    }
    return dict(
        update=lab.training.step_count,
        shape=list(micro.scores.shape),
        local=micro.local,
        cells=cells,
        banks=banks,
        rows=micro.row_ids.tolist(),
        columns=micro.column_ids.tolist(),
        says=dict(
            matrix=view.matrix.sentence, banks=view.banks.sentence, curves=view.curves.sentence
        ),
    )


def scale(kind: str) -> list:
    """A matrix's colours as plotly takes them."""
    from contaccum_lite.lab.grid import colours

    table = colours("magnitude" if kind == "softmax weight" else "signed")
    places = [1, *range(16, 255, 16), 255] if kind == "softmax weight" else [1, 128, 255]
    return [[(place - 1) / 254, "rgb({}, {}, {})".format(*table[place, :3])] for place in places]


def packed(text: str) -> str:
    """Text for a page that unpacks it itself: the same text, the same bytes."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def lab_page(recorded: dict) -> str:
    """The page, whole. Raises `ValueError` above LARGEST."""
    from plotly.offline import get_plotlyjs

    parts = {
        "@PLOTLY@": packed(get_plotlyjs()),
        "@RECORDED@": packed(json.dumps(recorded, allow_nan=False)),
    }
    page = (HERE / "lab_page.html").read_text()
    for mark, text in parts.items():
        page = page.replace(mark, text)
    if len(page.encode()) > LARGEST:
        raise ValueError(
            f"the page has {len(page.encode()):,} bytes, allowed are {LARGEST:,}: record fewer frames."
        )
    return page


# --- the notebooks -----------------------------------------------------------------------------------------------------


def exporter(**options):
    """nbconvert's exporter to HTML, with formulas as MathML, which a browser sets without a network, and without MathJax."""
    import latex2mathml.converter
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body):
            return latex2mathml.converter.convert(body)

        def block_math(self, body):
            return latex2mathml.converter.convert(body, display="block")

    class Exporter(HTMLExporter):
        def default_filters(self):
            yield from super().default_filters()
            yield (
                "markdown2html",
                lambda source: MarkdownWithMath(
                    renderer=Renderer(
                        escape=False, embed_images=True, path=str(HERE), anchor_link_text="¶"
                    )
                ).render(source),
            )

    return Exporter(embed_images=True, **options)


def course(out: Path, names: str = "[0-9]*.ipynb") -> list[tuple[str, str]]:
    """Every notebook as HTML beside the others, pictures inside, links among them changed; (file's stem, title) of each."""
    import nbformat

    made, titles = exporter(), []
    made.require_js_url = ""  # needed by widgets only, and loaded from elsewhere
    for path in sorted(HERE.glob(names)):
        notebook = nbformat.read(path, as_version=4)
        notebook.cells = [
            cell for cell in notebook.cells if "set-up" not in cell.metadata.get("tags", [])
        ]
        body, _ = made.from_notebook_node(
            notebook, resources={"metadata": {"path": str(HERE), "name": path.stem}}
        )
        body = re.sub(
            r"<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->",
            "<style>math { font-size: 1.2em }</style>",
            body,
            flags=re.S,
        )
        for name, page in all_pages().items():
            link = rf'href="(?:\.\./docs/|\.\./notebooks/)?{re.escape(name)}(?=["#])'
            body = re.sub(link, f'href="{page}', body)
        (out / f"{path.stem}.html").write_text(body)
        titles.append((path.stem, notebook.cells[0].source.splitlines()[0].lstrip("# ")))
    return titles


# --- what stands around them -------------------------------------------------------------------------------------------


def markdown(path: Path, pages: dict[str, str]) -> str:
    """A Markdown file as HTML, pictures inside. pages: file's name -> page, of all that can be followed.

    A link to a file that is no page becomes plain words.
    """
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    drawn = IPythonRenderer(
        escape=False, embed_images=True, path=str(path.parent), anchor_link_text=""
    )
    return followed(MarkdownWithMath(renderer=drawn).render(path.read_text()), pages)


def followed(page: str, pages: dict[str, str]) -> str:
    """A page whose links lead to the other pages, or are no links where there is none."""

    def link(match: re.Match) -> str:
        target, words = match[1], match[2]
        if re.match(r"(https?:|mailto:|#)", target):
            return match[0]
        file, _, place = target.partition("#")
        if Path(file).name not in pages:
            return words
        place = f"#{place}" if place else ""
        return f'<a href="{pages[Path(file).name]}{place}">{words}</a>'

    return re.sub(r'<a href="([^"]*)"[^>]*>(.*?)</a>', link, page, flags=re.S)


def all_pages() -> dict[str, str]:
    """File's name -> page: the notebooks, the glossary and the documents."""
    pages = {path.name: f"{path.stem}.html" for path in HERE.glob("[0-9]*.ipynb")}
    pages |= {path.name: f"docs-{path.stem}.html" for path in (HERE.parent / "docs").glob("*.md")}
    return {**pages, "NOTATION.md": "NOTATION.html"}


def documents(out: Path) -> list[tuple[str, str]]:
    """The glossary and all of docs/ as pages; (page, title) of each."""
    pages, titles = all_pages(), []
    paths = [HERE / "NOTATION.md", *sorted((HERE.parent / "docs").glob("*.md"))]
    for path in paths:
        title = path.read_text().splitlines()[0].lstrip("# ")
        body = markdown(path, pages)
        page = (HERE / "document.html").read_text()
        page = page.replace("@TITLE@", html.escape(title)).replace("@BODY@", body)
        (out / pages[path.name]).write_text(page)
        titles.append((pages[path.name], title))
    return titles


def readme_part(heading: str) -> list[str]:
    """The rows of the first table below a heading of the README, without its head."""
    text = (HERE.parent / "README.md").read_text().split(f"\n## {heading}\n")[1]
    rows = re.findall(r"^\|.*\|$", text.split("\n## ")[0], re.M)
    return rows


def face(titles, documents=()) -> str:
    """The first page: what it is, the recorded lab playing, the race, the course, the documents."""
    from tools.links import repository

    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in readme_part("The course")[2:]
    ]
    lines = {re.search(r"(\d\d_\w+)\.ipynb", row[0])[1]: row[1:] for row in rows}
    course = ""
    for stem, title in titles:
        words, minutes = lines.get(stem, ["", ""])
        time = f" <small>{html.escape(minutes)} minutes</small>" if minutes else ""
        course += f'<li><a href="{stem}.html">{html.escape(title)}</a>{time}<p>{html.escape(words)}</p></li>'
    race = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in readme_part("What it shows")
    ]
    head = "".join(f"<th scope='col'>{html.escape(cell)}</th>" for cell in race[0][:3])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[:3]) + "</tr>"
        for row in race[2:]
    )
    name, first = repository(), "notebooks/00_start_here.ipynb"
    run = {
        "Open in Colab": f"https://colab.research.google.com/github/{name}/blob/main/{first}",
        "Open on Binder": f"https://mybinder.org/v2/gh/{name}/HEAD?urlpath=lab/tree/{first}",
        "Run it on a laptop": "docs-index.html#install",
        "Source": f"https://github.com/{name}",
    }
    parts = {
        "@COUNT@": str(len(titles)),
        "@RUN@": "".join(f'<a href="{html.escape(to)}">{words}</a>' for words, to in run.items()),
        "@RACE@": f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
        "@COURSE@": course,
        "@DOCS@": "".join(f'<li><a href="{to}">{html.escape(t)}</a></li>' for to, t in documents),
    }
    page = (HERE / "face.html").read_text()
    for mark, text in parts.items():
        page = page.replace(mark, text)
    return page


def main(source: str = "python-docs", out: Path = OUT) -> None:
    import torch

    import contaccum_lite as cl

    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(face(course(out), documents(out)))
    page = lab_page(record(cl.load_pairs(source), memory_size=N_MEMORY))
    (out / "lab.html").write_text(page)
    print(
        f"{out}: {len(list(out.glob('*.html')))} pages; lab.html has {math.ceil(len(page.encode()) / 1e5) / 10} MB"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
